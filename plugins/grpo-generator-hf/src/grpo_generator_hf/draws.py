"""The random draws of one batch, and the record of what was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from grpo_core.types import Completion
from grpo_generator_hf.philox import uniforms
from grpo_generator_hf.sampling import draw, most_likely, transform
from grpo_generator_hf.stopping import StopStrings

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest
    from grpo_generator_hf.rows import Row

_POSITIONS_AT_ONCE = 64
"""Random numbers are made this many tokens ahead: ten rounds on a handful of numbers would cost
more in calls than in arithmetic."""


class Draws:
    """Takes logits line by line of a batch, returns tokens, and keeps the completions.

    A *line* is a place in the batch. Lines whose completion has ended may stay in the batch; what
    is drawn for them is dropped. ``keep`` follows when the batch is compacted.
    """

    def __init__(
        self,
        request: GenerateRequest,
        rows: Sequence[Row],
        decode: Callable[[list[int]], str],
        device: torch.device,
    ) -> None:
        self._request = request
        self._sampling = request.sampling
        self._device = device
        self._eos = frozenset(request.eos_token_ids)
        self._records = [_Record(row, StopStrings(decode, self._sampling.stop)) for row in rows]
        self._lines = list(self._records)
        self._drawn = 0
        self._uniform_BT = np.empty((len(rows), 0))
        self._seen_BV: Tensor | None = None

    def draw(self, logits_BV: Tensor) -> Tensor:
        """Draw one token per line and record it; int64 of shape ``(B,)``.

        Raises:
            FloatingPointError: the logits hold NaN, or an infinity other than ``-inf``.
        """
        logits_BV = transform(logits_BV, self._sampling, self._seen(logits_BV))
        if self._sampling.temperature == 0:
            token_B, logprob_B = most_likely(logits_BV)
        else:
            token_B, logprob_B = draw(logits_BV, self._next_uniform_B())
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, token_B[:, None], True)
        # One transfer for both; every token id is exact in float64.
        pairs = torch.stack([token_B.double(), logprob_B.double()], 1).tolist()
        for record, (token, logprob) in zip(self._lines, pairs, strict=True):
            if record.finish_reason is None:
                self._record(record, int(token), logprob)
        self._drawn += 1
        return token_B

    def unfinished(self) -> list[int]:
        """The lines whose completion goes on."""
        return [i for i, record in enumerate(self._lines) if record.finish_reason is None]

    def finished(self) -> list[bool]:
        """For each line, whether its completion has ended."""
        return [record.finish_reason is not None for record in self._lines]

    def keep(self, lines: Sequence[int]) -> None:
        """The batch now has only these of its former lines, in this order."""
        self._lines = [self._lines[i] for i in lines]
        self._uniform_BT = self._uniform_BT[list(lines)]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[torch.tensor(lines, device=self._device)]

    def completions(self) -> dict[Row, Completion]:
        """What was sampled, once nothing is unfinished."""
        return {record.row: record.completion() for record in self._records}

    def _record(self, record: _Record, token: int, logprob: float) -> None:
        if not math.isfinite(logprob):
            raise FloatingPointError(
                f"the policy's logits for token {len(record.token_ids)} of sample "
                f"{record.row.sample} of prompt {record.row.prompt} at step {self._request.step} "
                f"are NaN or infinite (log-prob {logprob}): its weights have probably diverged, "
                "or overflow in this dtype"
            )
        record.token_ids.append(token)
        record.logprobs.append(logprob)
        if token in self._eos or record.stop.completed_by(token):
            record.finish_reason = "stop"
        elif len(record.token_ids) == self._sampling.max_tokens:
            record.finish_reason = "length"

    def _next_uniform_B(self) -> Tensor:
        column = self._drawn % _POSITIONS_AT_ONCE
        if column == 0:
            rows = [record.row for record in self._lines]
            prompt_ids_P = self._request.prompt_ids_P
            start_B = np.array([len(prompt_ids_P[row.prompt]) for row in rows]) + self._drawn
            self._uniform_BT = uniforms(
                seed=self._request.seed,
                step=self._request.step,
                prompt_key_B=np.array([self._request.prompt_keys_P[row.prompt] for row in rows]),
                sample_B=np.array([row.sample for row in rows]),
                position_BT=start_B[:, None] + np.arange(_POSITIONS_AT_ONCE),
            )
        return torch.from_numpy(self._uniform_BT[:, column].copy()).to(self._device)

    def _seen(self, logits_BV: Tensor) -> Tensor | None:
        if self._sampling.repetition_penalty != 1 and self._seen_BV is None:
            # From the prompts themselves, not from the padded batch: transformers' own processor
            # would also penalise the padding token there.
            self._seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
            for line, record in enumerate(self._lines):
                ids = self._request.prompt_ids_P[record.row.prompt]
                self._seen_BV[line, torch.tensor(ids, device=self._device)] = True
        return self._seen_BV


class _Record:
    """One completion while it grows."""

    def __init__(self, row: Row, stop: StopStrings) -> None:
        self.row = row
        self.stop = stop
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: Literal["stop", "length"] | None = None

    def completion(self) -> Completion:
        assert self.finish_reason is not None, f"{self.row} is not finished"
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
        )
