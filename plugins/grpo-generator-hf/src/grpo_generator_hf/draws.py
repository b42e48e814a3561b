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
from grpo_generator_hf.sampling import draw, log_mass, most_likely, tempered, transform
from grpo_generator_hf.stopping import StopStrings

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest, TurnRequest
    from grpo_generator_hf.rows import Row

_POSITIONS_AT_ONCE = 64
"""Random numbers are made this many tokens ahead: ten rounds on a handful of numbers would cost
more in calls than in arithmetic."""


class Draws:
    """Takes logits line by line of a batch, returns tokens, and keeps the completions.

    A *line* is a place in the batch. What is drawn for a line whose completion has ended, and
    which has not left yet, is dropped.
    """

    def __init__(
        self,
        request: GenerateRequest | TurnRequest,
        decode: Callable[[list[int]], str],
        device: torch.device,
    ) -> None:
        self._request = request
        self._sampling = request.sampling
        # At temperature 0 nothing is drawn, so that nothing is cut off either.
        self._truncates = request.sampling.truncates and request.sampling.temperature != 0
        self._decode = decode
        self._device = device
        self._eos = frozenset(request.eos_token_ids)
        self._lines: list[_Record] = []
        self._seen_BV: Tensor | None = None

    def admit(self, rows: Sequence[Row]) -> None:
        """New lines, behind those that are there."""
        self._lines += [
            _Record(row, StopStrings(self._decode, self._sampling.stop)) for row in rows
        ]

    def draw(self, logits_BV: Tensor) -> Tensor:
        """Draw one token per line and record it; int64 of shape ``(B,)``.

        Raises:
            FloatingPointError: the logits hold NaN, or an infinity other than ``-inf``.
        """
        policy_BV = tempered(logits_BV, self._sampling.temperature)
        drawn_BV = transform(policy_BV, self._sampling, self._seen(policy_BV))
        if self._sampling.temperature == 0:
            token_B, drawn_logmass_B = most_likely(drawn_BV)
        else:
            token_B, drawn_logmass_B = draw(drawn_BV, self._uniform_B())
        logmass_B = drawn_logmass_B if drawn_BV is policy_BV else log_mass(policy_BV)
        columns = [token_B, policy_BV.gather(1, token_B[:, None]).squeeze(1) - logmass_B]
        if self._truncates:
            kept_logmass_B = drawn_logmass_B
            if self._seen_BV is not None:
                # Mass of the policy's own logits, which the penalty has changed in `drawn_BV`.
                kept_logmass_B = log_mass(policy_BV.masked_fill(drawn_BV == -math.inf, -math.inf))
            # Where nothing is cut off, two sums over the same may differ by rounding.
            columns.append((kept_logmass_B - logmass_B).clamp(max=0))
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, token_B[:, None], True)
        # One transfer for all; every token id is exact in float64.
        numbers = torch.stack([column.double() for column in columns], 1).tolist()
        for record, (token, *logs) in zip(self._lines, numbers, strict=True):
            if record.finish_reason is None:
                self._record(record, int(token), *logs)
        return token_B

    def ended(self) -> list[int]:
        """The lines whose completion has ended."""
        return [i for i, record in enumerate(self._lines) if record.finish_reason is not None]

    def leave(self, ended: Sequence[int], order: Sequence[int]) -> dict[Row, Completion]:
        """Take out what has ended.

        Args:
            order: for each line that is left, the line where it was before.
        """
        completions = {
            record.row: record.completion() for record in map(self._lines.__getitem__, ended)
        }
        self._lines = [self._lines[i] for i in order]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[
                torch.tensor(order, dtype=torch.long, device=self._device)
            ]
        return completions

    def _record(
        self, record: _Record, token: int, logprob: float, kept_logmass: float | None = None
    ) -> None:
        if not math.isfinite(logprob):
            raise FloatingPointError(
                f"the policy's logits for token {len(record.token_ids)} of sample "
                f"{record.row.sample} of prompt {record.row.prompt} at step {self._request.step} "
                f"are NaN or infinite (log-prob {logprob}): its weights have probably diverged, "
                "or overflow in this dtype"
            )
        record.token_ids.append(token)
        record.logprobs.append(logprob)
        if kept_logmass is not None:
            record.kept_logmass.append(kept_logmass)
        if token in self._eos or record.stop.completed_by(token):
            record.finish_reason = "stop"
        elif len(record.token_ids) == record.row.max_tokens:
            record.finish_reason = "length"

    def _uniform_B(self) -> Tensor:
        due = [r for r in self._lines if len(r.token_ids) % _POSITIONS_AT_ONCE == 0]
        if due:
            start_B = np.array([len(r.row.prompt_ids) + len(r.token_ids) for r in due])
            numbers_BT = uniforms(
                seed=self._request.seed,
                step=self._request.step,
                prompt_key_B=np.array([r.row.key for r in due]),
                sample_B=np.array([r.row.sample for r in due]),
                position_BT=start_B[:, None] + np.arange(_POSITIONS_AT_ONCE),
            )
            for record, numbers in zip(due, numbers_BT.tolist(), strict=True):
                record.uniforms = numbers
        drawn = [r.uniforms[len(r.token_ids) % _POSITIONS_AT_ONCE] for r in self._lines]
        return torch.tensor(drawn, dtype=torch.float64, device=self._device)

    def _seen(self, logits_BV: Tensor) -> Tensor | None:
        """Tokens that each line holds already: the prompt's own, not those of a padded batch, as
        transformers' processor would see them."""
        if self._sampling.repetition_penalty == 1:
            return None
        known = 0 if self._seen_BV is None else len(self._seen_BV)
        new_BV = torch.zeros_like(logits_BV[known:], dtype=torch.bool)
        for line, record in enumerate(self._lines[known:]):
            ids = torch.tensor(record.row.prompt_ids, device=self._device)
            new_BV[line, ids] = True
        self._seen_BV = new_BV if self._seen_BV is None else torch.cat([self._seen_BV, new_BV])
        return self._seen_BV


class _Record:
    """One completion while it grows."""

    def __init__(self, row: Row, stop: StopStrings) -> None:
        self.row = row
        self.stop = stop
        self.uniforms: list[float] = []
        """For this block of ``_POSITIONS_AT_ONCE`` tokens."""
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.kept_logmass: list[float] = []
        """Empty when nothing is truncated."""
        self.finish_reason: Literal["stop", "length"] | None = None

    def completion(self) -> Completion:
        assert self.finish_reason is not None, f"{self.row} is not finished"
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            kept_logmass=tuple(self.kept_logmass) or None,
            finish_reason=self.finish_reason,
        )
