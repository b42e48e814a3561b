"""The generator `hf`: completions from the policy's own model, in the training process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from grpo_core.errors import SyncError
from grpo_core.policy import base_of, context_length
from grpo_core.types import GeneratedGroup, SampledTurn
from grpo_generator_hf.capability import can_share, fusion_obstacle, slots_obstacle
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.copy import Copy
from grpo_generator_hf.decoder import Decoder
from grpo_generator_hf.draws import Draws
from grpo_generator_hf.fallback import ByGenerate
from grpo_generator_hf.fused_step import FusedStep
from grpo_generator_hf.mode import sampling_mode
from grpo_generator_hf.rows import (
    Room,
    Row,
    admission_order,
    check,
    room,
    turn_room,
    turn_units,
)
from grpo_generator_hf.slots import Slots

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Completion, GenerateRequest, Turn, TurnRequest, WeightUpdate

logger = logging.getLogger(__name__)

SHARE_FROM = 128
"""Mean prompt length from which the rows of a prompt read its keys and values together. Measured
on a CPU, rows of 8 per prompt, one layer of a step: prompts of 22 tokens 0.36 ms copied and 1.0 ms
shared, of 192 equal, of 768 (16 rows) 6.7 ms and 1.5 ms; shared ones need the memory once."""


class HFGenerator:
    """Samples with the very weights that are being trained.

    A completion depends on the weights, its prompt and (seed, step, prompt key, sample), not on
    what it was decoded with. Tokens are drawn under the caller's autocast, if any.
    """

    exact_logprobs = True
    samples_apart = False

    def __init__(self, config: HFConfig | None = None, context: BuildContext | None = None) -> None:
        self._config = config or HFConfig()
        self._copy: Copy | None = None
        if self._config.device is not None:
            self._copy, self.samples_apart = Copy(self._config.device), True
            # Another device rounds in its own way.
            self.exact_logprobs = False
        self._held: WeightUpdate | None = None
        self._over_slots = self._fused = False

    def sync(self, update: WeightUpdate) -> int:
        """Keep the policy's model, whose weights then change in place, or copy them.

        Raises:
            SyncError: a copy of the model has other weights than the policy.
        """
        if self._copy is not None:
            update = replace(update, model=self._copy.of(update))
        if self._held is None or self._held.model is not update.model:
            self._try_out(update.model)
        self._held = update
        return self._held.policy_version

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups as they are complete.

        Raises:
            DataError: a prompt is empty, or too long for the model's context with ``max_tokens``.
            ConfigError: the request cannot be served within the bounds, or is not text only.
            SyncError: there are no weights yet.
            FloatingPointError: the model's logits are NaN or infinite.
        """
        # Not a generator function itself: a wrong request fails here, not at the first `next`.
        update = self._weights()
        check(request, context_length(update.model))
        shared = self._over_slots and _shares(base_of(update.model), request)
        return self._groups(request, update, room(request, self._config, shared=shared))

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Yield turns as they end; those that become ready meanwhile join with the next token.

        Raises:
            ConfigError: a rollout cannot be served within the bounds.
            SyncError: there are no weights yet.
            FloatingPointError: the model's logits are NaN or infinite.
        """
        return self._turns(request, self._weights(), turn_room(request, self._config))

    def close(self) -> None:
        self._held = None

    def _weights(self) -> WeightUpdate:
        if self._held is None:
            raise SyncError("generator 'hf' has no weights: sync() must come before generate()")
        return self._held

    def _groups(
        self, request: GenerateRequest, update: WeightUpdate, bounds: Room
    ) -> Iterator[GeneratedGroup]:
        waiting: dict[int, dict[int, Completion]] = {}
        units = admission_order(request, bounds)
        with sampling_mode(update.model):
            decoding = self._decoding(request, update, bounds, rows=sum(map(len, units)))
        decoding.add(units)
        while True:
            self._still_hold(update, request)
            # Nothing is held open across a yield: eval mode and `no_grad` would leak into
            # whatever the caller does next.
            with sampling_mode(update.model):
                complete = _next_groups(decoding, waiting, request.group_size)
            if not complete:
                return
            for index in complete:
                group = waiting.pop(index)
                yield GeneratedGroup(
                    index=index,
                    completions_G=tuple(group[sample] for sample in range(request.group_size)),
                    policy_version=update.policy_version,
                )

    def _turns(
        self, request: TurnRequest, update: WeightUpdate, bounds: Room
    ) -> Iterator[SampledTurn]:
        with sampling_mode(update.model):
            decoding = self._decoding(request, update, bounds, rows=request.rollouts)
        asked: dict[tuple[int, int], Turn] = {}

        def take(*, wait: bool) -> None:
            turns = request.take(wait)
            asked.update({(turn.key, turn.sample): turn for turn in turns})
            decoding.add(turn_units(turns, bounds))

        while True:
            self._still_hold(update, request)
            # Waiting for a tool is outside the context too: it may take a minute.
            take(wait=decoding.done)
            if decoding.done:
                return
            ended: dict[Row, Completion] = {}
            with sampling_mode(update.model):
                while not ended and not decoding.done:
                    ended = decoding.advance()
                    if not ended:
                        take(wait=False)
            for row, completion in ended.items():
                yield SampledTurn(
                    turn=asked.pop((row.prompt, row.sample)),
                    completion=completion,
                    policy_version=update.policy_version,
                )

    def _still_hold(self, update: WeightUpdate, request: GenerateRequest | TurnRequest) -> None:
        if self._held is not update:
            raise SyncError(
                f"generator 'hf' was synced or closed while it was sampling step "
                f"{request.step} at policy_version {update.policy_version}: the rest of the "
                "request would come from other weights"
            )

    def _decoding(
        self,
        request: GenerateRequest | TurnRequest,
        update: WeightUpdate,
        bounds: Room,
        *,
        rows: int,
    ) -> Decoder | ByGenerate:
        """Rows decoded together, or some of one prompt at a time through `model.generate`; to be
        used in the caller's `sampling_mode`."""
        base = base_of(update.model)
        device = _input_device(base)

        def draws() -> Draws:
            return Draws(request, partial(_text, update.tokenizer), device)

        if not self._over_slots:
            return ByGenerate(base, draws, device)
        slots = Slots(shared=bounds.prompt_positions > 0, device=device)
        # The number of rows chooses a layout of the weights, which rounds in its own way: it must
        # not depend on how many turns happened to be ready.
        fused = FusedStep(base, slots, rows=min(bounds.rows, rows)) if self._fused else None
        return Decoder(base, bounds, slots, draws(), fused)

    def _try_out(self, model: torch.nn.Module) -> None:
        base = base_of(model)
        with sampling_mode(model):
            reason = slots_obstacle(base, _input_device(base))
            self._over_slots = reason is None
            if reason is not None:
                logger.warning(
                    "%s is sampled through model.generate, which is slower: %s",
                    type(base).__name__,
                    reason,
                )
            self._fused = False
            if self._over_slots and self._config.fused:
                reason = fusion_obstacle(base, _input_device(base))
                self._fused = reason is None
                if reason is not None:
                    logger.info(
                        "%s is decoded through its own forward: %s", type(base).__name__, reason
                    )


def _next_groups(
    decoding: Decoder | ByGenerate, waiting: dict[int, dict[int, Completion]], size: int
) -> list[int]:
    """Take completions until some group is whole; which ones are. None at the end."""
    while not decoding.done:
        for row, completion in decoding.advance().items():
            waiting.setdefault(row.prompt, {})[row.sample] = completion
        complete = [prompt for prompt, group in waiting.items() if len(group) == size]
        if complete:
            return complete
    return []


def _shares(base: PreTrainedModel, request: GenerateRequest) -> bool:
    lengths = [len(ids) for ids in request.prompt_ids_P]
    long = bool(lengths) and sum(lengths) >= SHARE_FROM * len(lengths)
    return long and request.group_size > 1 and can_share(base)


def _input_device(base: PreTrainedModel) -> torch.device:
    """Where token ids go; with layers on several devices that is the embedding's."""
    return cast("torch.Tensor", base.get_input_embeddings().weight).device


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # Special tokens stay: "<|im_end|>" may well be a stop string.
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
