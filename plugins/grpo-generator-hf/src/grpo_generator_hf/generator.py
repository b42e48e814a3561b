"""The generator `hf`: completions from the policy's own model, in the training process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from grpo_core.errors import SyncError
from grpo_core.policy import base_of, context_length
from grpo_core.types import Completion, GeneratedGroup
from grpo_generator_hf.capability import obstacle
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.decode import decode
from grpo_generator_hf.draws import Draws
from grpo_generator_hf.fallback import decode_by_generate
from grpo_generator_hf.kv_cache import input_device
from grpo_generator_hf.mode import sampling_mode
from grpo_generator_hf.rows import Row, check, plan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from grpo_core.protocols import BuildContext
    from grpo_core.types import GenerateRequest, WeightUpdate

logger = logging.getLogger(__name__)


class HFGenerator:
    """Samples with the very weights that are being trained; nothing is copied.

    A completion depends on the weights, its prompt and (seed, step, prompt key, sample), not on
    what it was batched with. Tokens are drawn under the caller's autocast, if any.
    """

    exact_logprobs = True

    def __init__(self, config: HFConfig | None = None, context: BuildContext | None = None) -> None:
        self._config = config or HFConfig()
        self._held: WeightUpdate | None = None
        self._cached = True

    def sync(self, update: WeightUpdate) -> int:
        """Keep the policy's model; its weights then change in place."""
        if self._held is None or self._held.model is not update.model:
            self._cached = _can_cache(update.model)
        self._held = update
        return self._held.policy_version

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups, longest prompts first.

        Raises:
            DataError: a prompt is empty, or too long for the model's context with ``max_tokens``.
            ConfigError: the request cannot be served within the bounds, or is not text only.
            SyncError: there are no weights yet.
            FloatingPointError: the model's logits are NaN or infinite.
        """
        # Not a generator function itself: a wrong request fails here, not at the first `next`.
        update = self._held
        if update is None:
            raise SyncError("generator 'hf' has no weights: sync() must come before generate()")
        check(request, context_length(update.model))
        return self._groups(request, plan(request, self._config), update)

    def close(self) -> None:
        self._held = None

    def _groups(
        self, request: GenerateRequest, batches: Sequence[Sequence[Row]], update: WeightUpdate
    ) -> Iterator[GeneratedGroup]:
        waiting: dict[int, dict[int, Completion]] = {}
        for rows in batches:
            if self._held is not update:
                raise SyncError(
                    f"generator 'hf' was synced or closed while it was sampling step "
                    f"{request.step} at policy_version {update.policy_version}: the rest of the "
                    "request would come from other weights"
                )
            # Whole batches between yields: held open across one, eval mode and `no_grad` would
            # leak into whatever the caller does next.
            for row, completion in self._batch(request, rows, update).items():
                waiting.setdefault(row.prompt, {})[row.sample] = completion
            for index in [p for p, group in waiting.items() if len(group) == request.group_size]:
                group = waiting.pop(index)
                yield GeneratedGroup(
                    index=index,
                    completions_G=tuple(group[sample] for sample in range(request.group_size)),
                    policy_version=update.policy_version,
                )

    def _batch(
        self, request: GenerateRequest, rows: Sequence[Row], update: WeightUpdate
    ) -> dict[Row, Completion]:
        base = base_of(update.model)
        device = input_device(base)
        text = partial(_text, update.tokenizer)
        sampled: dict[Row, Completion] = {}
        with sampling_mode(update.model):
            if self._cached:
                draws = Draws(request, rows, text, device)
                decode(base, request, rows, draws)
                return draws.completions()
            for prompt, group in groupby(rows, key=lambda row: row.prompt):
                same = tuple(group)
                draws = Draws(request, same, text, device)
                decode_by_generate(base, request, prompt, len(same), draws)
                sampled |= draws.completions()
        return sampled


def _can_cache(model: nn.Module) -> bool:
    base = base_of(model)
    with sampling_mode(model):
        reason = obstacle(base)
    if reason is not None:
        logger.warning(
            "%s is sampled through model.generate, which is slower: %s",
            type(base).__name__,
            reason,
        )
    return reason is None


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # Special tokens stay: "<|im_end|>" may well be a stop string.
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
