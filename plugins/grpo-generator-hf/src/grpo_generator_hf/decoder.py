"""Continuous decoding: groups come as soon as there is room, rows leave as soon as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from grpo_generator_hf.model_step import ModelStep, attention_over_slots
from grpo_generator_hf.slots import Admission, Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_core.types import Completion
    from grpo_generator_hf.draws import Draws
    from grpo_generator_hf.rows import Room, Row, Unit

_PREFILL_TOKENS = 2048
"""Prompt tokens computed in one pass. Products no longer gain above some hundred rows on a CPU;
what a pass keeps in memory does grow."""


class Step(Protocol):
    """One token for every row."""

    def step(self, token_B: Tensor) -> Tensor: ...


class Decoder:
    """The rows that wait, and those that are being decoded."""

    def __init__(
        self,
        base: PreTrainedModel,
        room: Room,
        slots: Slots,
        draws: Draws,
        step: Step | None = None,
    ) -> None:
        self._base = base
        self._waiting: deque[Unit] = deque()
        self._room = room
        self._slots = slots
        self._draws = draws
        self._model = ModelStep(base, slots)
        self._step = step or self._model
        self._logits_BV: Tensor | None = None

    @property
    def done(self) -> bool:
        return not self._waiting and not len(self._slots)

    def add(self, units: Sequence[Unit]) -> None:
        """More rows, behind those that wait."""
        self._waiting.extend(units)

    def advance(self) -> dict[Row, Completion]:
        """Admit what fits, draw one token for every row, and compute the next logits.

        Returns:
            The rows that ended with this token.
        """
        with attention_over_slots(self._base):
            return self._advance()

    def _advance(self) -> dict[Row, Completion]:
        logits = [self._logits_BV] if self._logits_BV is not None else []
        logits += self._admitted()
        token_B = self._draws.draw(logits[0] if len(logits) == 1 else torch.cat(logits))
        ended = self._draws.ended()
        completions = {}
        if ended:
            order = self._slots.leave(ended)
            completions = self._draws.leave(ended, order)
            token_B = token_B[torch.tensor(order, dtype=torch.long, device=token_B.device)]
        self._logits_BV = self._step.step(token_B) if len(token_B) else None
        return completions

    def _admitted(self) -> list[Tensor]:
        """Logits of the first token of every row that is new, ``(rows, V)`` each."""
        units: list[Unit] = []
        rows, prompts = len(self._slots), self._slots.prompts
        while self._waiting and self._room.fits(rows + len(self._waiting[0]), prompts + 1):
            units.append(self._waiting.popleft())
            rows += len(units[-1])
            prompts += 1
        return [self._prefilled(part) for part in self._parts(units)]

    def _parts(self, units: Sequence[Unit]) -> list[list[Unit]]:
        parts: list[list[Unit]] = []
        tokens = 0
        for unit in units:
            length = len(unit[0].prompt_ids)
            if not parts or tokens + length > _PREFILL_TOKENS:
                parts.append([])
                tokens = 0
            parts[-1].append(unit)
            tokens += length
        return parts

    def _prefilled(self, units: Sequence[Unit]) -> Tensor:
        admissions = [Admission(prompt_ids=unit[0].prompt_ids, rows=len(unit)) for unit in units]
        self._draws.admit([row for unit in units for row in unit])
        self._slots.admit(admissions)
        logits_PV = self._model.prefill(admissions)
        counts_P = torch.tensor([len(unit) for unit in units], device=logits_PV.device)
        return logits_PV.repeat_interleave(counts_P, 0)
