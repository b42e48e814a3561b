"""Sampling through `model.generate`, for models whose state cannot be multiplied and compacted.

Slower: a prompt is computed once per completion, and rows that have finished go on being computed.
The draws are the same: `generate` is told to be greedy, and shown logits in which only the token
drawn here is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_core.types import Completion
    from grpo_generator_hf.draws import Draws
    from grpo_generator_hf.rows import Row, Unit


class ByGenerate:
    """The rows that wait; each unit is decoded when its turn comes."""

    def __init__(
        self, base: PreTrainedModel, draws: Callable[[], Draws], device: torch.device
    ) -> None:
        self._base, self._draws, self._device = base, draws, device
        self._waiting: deque[Unit] = deque()

    @property
    def done(self) -> bool:
        return not self._waiting

    def add(self, units: Sequence[Unit]) -> None:
        """More rows, behind those that wait."""
        self._waiting.extend(units)

    def advance(self) -> dict[Row, Completion]:
        """Decode the next rows to their end."""
        return decode_by_generate(self._base, self._waiting.popleft(), self._draws(), self._device)


def decode_by_generate(
    base: PreTrainedModel,
    rows: Sequence[Row],
    draws: Draws,
    device: torch.device,
) -> dict[Row, Completion]:
    """Sample some completions of one prompt.

    One prompt at a time: with others of unlike length there would be padding, which recurrent
    layers carry along.
    """
    ids_BT = torch.tensor([rows[0].prompt_ids], device=device)
    ids_BT = ids_BT.repeat(len(rows), 1)
    draws.admit(rows)
    # PreTrainedModel does not declare what its generation mixin adds.
    generate = cast("Callable[..., object]", base.generate)
    with _own_generation_config(base, max(row.max_tokens for row in rows)):
        generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            logits_processor=LogitsProcessorList([_OnlyTheDrawn(draws)]),
            stopping_criteria=StoppingCriteriaList([_UntilEnded(draws)]),
        )
    return draws.leave(draws.ended(), [])


class _OnlyTheDrawn(LogitsProcessor):
    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_B = self._draws.draw(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, token_B[:, None], 0.0)


class _UntilEnded(StoppingCriteria):
    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended_B = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ended_B[self._draws.ended()] = True
        return ended_B


@contextmanager
def _own_generation_config(base: PreTrainedModel, max_tokens: int) -> Iterator[None]:
    """`generate` takes what a call leaves open from the model's own generation config: suppressed
    tokens, penalties and length rules there would change the distribution behind our back."""
    before = base.generation_config
    base.generation_config = GenerationConfig(do_sample=False, max_new_tokens=max_tokens)
    try:
        yield
    finally:
        base.generation_config = before
