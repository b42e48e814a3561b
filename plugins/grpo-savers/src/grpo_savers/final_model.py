"""The saver of models: at the end, and at checkpoints if asked."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING

from grpo_core.policy import has_adapter
from grpo_core.staging import staged_folder
from grpo_savers.card import write_card
from grpo_savers.config import SafetensorsConfig
from grpo_savers.exports import exported
from grpo_savers.weights import Writer

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from grpo_core.protocols import BuildContext
    from grpo_core.types import SaveRequest

MODELS = "models"


class SafetensorsSaver:
    """Writes ``final/``: weights as safetensors, configs, tokenizer with chat template, and a
    model card. The folder is complete or absent.

    A full model loads with ``AutoModelForCausalLM.from_pretrained``; of a LoRA policy the adapter
    is written, which loads with ``PeftModel.from_pretrained``, or the merged model if asked for. At
    every checkpoint the card is written beside ``config.yaml``, and the model to
    ``models/step-000040/`` if asked for.
    """

    Config = SafetensorsConfig

    def __init__(
        self, config: SafetensorsConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or SafetensorsConfig()

    def save(self, request: SaveRequest) -> Path | None:
        """Write the folder and return it; ``None`` on other ranks than the main one, and for
        checkpoints at which only the card is written.

        Raises:
            ConfigError: the model has no part of a name that is asked for, or one that cannot be
                written.
        """
        policy = request.policy
        if request.kind == "final":
            return self._write(request, request.run_dir / "final")
        if policy.is_main:
            write_card(request, request.run_dir)
        if not self._config.at_checkpoints:
            return None
        path = self._write(request, request.run_dir / MODELS / f"step-{request.step:06d}")
        if policy.is_main:
            prune(request.run_dir)
        return path

    def _write(self, request: SaveRequest, target: Path) -> Path | None:
        writer = Writer(policy=request.policy, config=self._config)
        modules = exported(request.policy.model, self._config.submodules)
        main = request.policy.is_main
        # The others take part in gathering what is sharded, and write nothing.
        with staged_folder(target) if main else nullcontext() as folder:
            for name, module in modules.items():
                self._write_one(writer, module, None if folder is None else folder / name)
            if folder is None:
                return None
            writer.tokenizer(folder)
            # Last, because PEFT writes a README of its own.
            write_card(request, folder, merged=self._config.adapter == "merged")
            mode = (folder / "README.md").stat().st_mode
            for path in folder.rglob("*"):
                # safetensors makes its files readable by their owner alone, whatever the umask
                # says, and a model in a shared folder could not be loaded by anybody else.
                if path.is_file():
                    path.chmod(mode)
        return target

    def _write_one(self, writer: Writer, module: Any, folder: Path | None) -> None:
        if not has_adapter(module):
            return writer.model(module, folder)
        if self._config.adapter == "merged":
            return writer.merged(module, folder)
        writer.adapter(module, folder)
        if self._config.adapter == "both":
            merged = None if folder is None else folder / "merged"
            writer.merged(module, merged)
            if merged is not None:
                writer.tokenizer(merged)
        return None


def prune(run_dir: Path) -> None:
    """Delete the models of checkpoints that are no longer kept."""
    for path in (run_dir / MODELS).glob("step-*"):
        if not (run_dir / "checkpoints" / path.name).exists():
            shutil.rmtree(path, ignore_errors=True)
