"""The saver of the final model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.staging import staged_folder
from grpo_savers.card import model_card
from grpo_savers.config import SafetensorsConfig
from grpo_savers.weights import write_adapter, write_model, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from grpo_core.protocols import BuildContext
    from grpo_core.types import SaveRequest


class SafetensorsSaver:
    """Writes ``final/``: weights as safetensors, configs, tokenizer with chat template, and a
    model card. The folder is complete or absent.

    A full model loads with ``AutoModelForCausalLM.from_pretrained``; of a LoRA policy only the
    adapter is written, which loads with ``PeftModel.from_pretrained``.
    """

    Config = SafetensorsConfig

    def __init__(
        self, config: SafetensorsConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or SafetensorsConfig()

    def save(self, request: SaveRequest) -> Path | None:
        """Write the folder on the main rank and return it; ``None`` on others, and for
        checkpoints, which are another saver's business."""
        policy = request.policy
        if request.kind != "final" or not policy.is_main:
            return None
        target = request.run_dir / "final"
        with staged_folder(target) as folder:
            if policy.has_adapter:
                write_adapter(policy, folder, dtype=self._config.dtype)
            else:
                write_model(
                    policy,
                    folder,
                    dtype=self._config.dtype,
                    max_shard_size=self._config.max_shard_size,
                )
            write_tokenizer(policy, folder)
            # Last, because PEFT writes a README of its own.
            card = folder / "README.md"
            model_card(request).save(card)
            for path in folder.iterdir():
                # safetensors makes its files readable by their owner alone, whatever the umask
                # says, and a model in a shared folder could not be loaded by anybody else.
                path.chmod(card.stat().st_mode)
        return target
