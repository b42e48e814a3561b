"""Completions while they are sampled, over any number of syncs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpo_core.types import Completion
from grpo_generator_vllm_server.request import Draw, draws, first_draw, seed_after

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest
    from grpo_generator_vllm_server.answer import Finish, Piece

Decode = Callable[[Sequence[int]], str]

SPLIT_CHARACTER = 4
"""Most characters by which text may shrink when a character that was cut in two is whole."""


@dataclass
class Draft:
    """What there is of one completion."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish | None = None


class GroupDraft:
    """The completions of one prompt; each is finished, or goes on from the tokens that it has.

    A member that goes on is asked for alone, with prompt and tokens so far as its prompt, so that
    the new weights compute their own keys and values for all of them.
    """

    def __init__(self, request: GenerateRequest, index: int, decode: Decode) -> None:
        self._first = first_draw(request, index)
        self._copies = request.group_size // draws(request)
        self._stops = request.sampling.stop
        self._decode = decode
        self._drafts = [Draft() for _ in range(draws(request))]

    @property
    def empty(self) -> bool:
        """Whether nothing has been sampled yet."""
        return not any(draft.token_ids for draft in self._drafts)

    def due(self) -> list[tuple[Draw, list[int]]]:
        """Calls that are still to be made, and which members each is for."""
        if self.empty:
            return [(self._first, list(range(len(self._drafts))))]
        return [
            (self._rest(member), [member])
            for member, draft in enumerate(self._drafts)
            if draft.finish is None
        ]

    def _rest(self, member: int) -> Draw:
        sampled = self._drafts[member].token_ids
        return Draw(
            token_ids=(*self._first.token_ids, *sampled),
            count=1,
            seed=seed_after(self._first.seed + member, len(sampled)),
            max_tokens=self._first.max_tokens - len(sampled),
        )

    def take(self, members: Sequence[int], pieces: Sequence[Piece], policy_version: int) -> None:
        """Add what a call has brought; weights of this version sampled it."""
        for member, piece in zip(members, pieces, strict=True):
            draft = self._drafts[member]
            before = len(draft.token_ids)
            draft.token_ids += piece.token_ids
            draft.logprobs += piece.logprobs
            draft.versions += [policy_version] * len(piece.token_ids)
            draft.finish = piece.finish
            if before and self._stops and piece.token_ids:
                self._stop_across(draft, before)

    def _stop_across(self, draft: Draft, cut: int) -> None:
        """End at a stop string of which the server saw only the end, as it begins to read anew
        with each call."""
        prompt = self._first.token_ids
        origin = len(self._decode(prompt))
        longest = max(map(len, self._stops))
        before = len(self._decode((*prompt, *draft.token_ids[:cut])))
        start = max(origin, before - longest - SPLIT_CHARACTER)
        for end in range(cut + 1, len(draft.token_ids) + 1):
            text = self._decode((*prompt, *draft.token_ids[:end]))
            if any(text.find(stop, start) >= 0 for stop in self._stops):
                del draft.token_ids[end:], draft.logprobs[end:], draft.versions[end:]
                draft.finish = "stop"
                return
            # One that begins here or later the server has seen whole.
            if len(text) >= before + longest + SPLIT_CHARACTER:
                return

    def finished(self) -> tuple[tuple[Completion, ...], int]:
        """The completions, and the oldest version that sampled of them; it is that of all whose
        ``policy_versions`` are ``None``."""
        oldest = min(version for draft in self._drafts for version in draft.versions)
        found = []
        for draft in self._drafts:
            assert draft.finish is not None
            found.append(
                Completion(
                    token_ids=tuple(draft.token_ids),
                    logprobs=tuple(draft.logprobs),
                    finish_reason=draft.finish,
                    policy_versions=(
                        None if set(draft.versions) == {oldest} else tuple(draft.versions)
                    ),
                )
            )
        return tuple(found) * self._copies, oldest
