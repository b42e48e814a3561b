"""Completions while they are sampled, over any number of syncs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from grpo_core.types import Completion
from grpo_generator_vllm_server.errors import BadAnswerError
from grpo_generator_vllm_server.request import Draw, draws, first_draw, seed_after, turn_draw

if TYPE_CHECKING:
    from grpo_core.types import GenerateRequest, Turn, TurnRequest
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


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Call:
    """Something to be asked of a server, for some members of a draft.

    Example: ``Call(draft=draft, draw=draw, members=(0, 1, 2, 3))``.
    """

    draft: GroupDraft
    draw: Draw
    members: tuple[int, ...]

    @property
    def share(self) -> Fraction:
        """How much of a prompt's whole group it is, as a load."""
        return Fraction(self.draw.count, self.draft.group)


class GroupDraft:
    """Completions of one prompt; each is finished, or goes on from the tokens that it has.

    A member that goes on is asked for alone, with prompt and tokens so far as its prompt, so that
    the new weights compute their own keys and values for all of them.

    Args:
        request: what they are of.
        first: asks for all of them.
        group: how many completions of its prompt are sampled, in this draft and others.
        place: prompt, and sample if it is of one alone: what shares a beginning with it.
        copies: how often each completion counts.
    """

    def __init__(
        self,
        request: GenerateRequest | TurnRequest,
        first: Draw,
        *,
        group: int,
        place: tuple[int, ...],
        decode: Decode,
        copies: int = 1,
    ) -> None:
        self.request, self.group, self.place = request, group, place
        self._first, self._copies = first, copies
        self._stops, self._ends = request.sampling.stop, request.eos_token_ids
        self._decode = decode
        self._drafts = [Draft() for _ in range(first.count)]

    @classmethod
    def of_group(cls, request: GenerateRequest, index: int, decode: Decode) -> GroupDraft:
        """The whole group of a prompt."""
        count = draws(request)
        return cls(
            request,
            first_draw(request, index),
            group=count,
            place=(request.prompt_keys_P[index],),
            decode=decode,
            copies=request.group_size // count,
        )

    @classmethod
    def of_turn(cls, request: TurnRequest, turn: Turn, decode: Decode) -> GroupDraft:
        """One turn of one rollout."""
        return cls(
            request,
            turn_draw(request, turn),
            group=request.group_size,
            place=(turn.key, turn.sample),
            decode=decode,
        )

    @property
    def is_finished(self) -> bool:
        return all(draft.finish is not None for draft in self._drafts)

    def due(self, members: Sequence[int] | None = None) -> list[Call]:
        """Calls that are to be made for these members, or all; none is under way for them."""
        if not any(draft.token_ids for draft in self._drafts):
            return [Call(draft=self, draw=self._first, members=tuple(range(self._first.count)))]
        return [
            Call(draft=self, draw=self._rest(member), members=(member,))
            for member in (range(len(self._drafts)) if members is None else members)
            if self._drafts[member].finish is None
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
        """Add what a call has brought; weights of this version sampled it.

        Raises:
            BadAnswerError: one ends at a stop string that is not there; nothing is added.
        """
        for member, piece in zip(members, pieces, strict=True):
            self._require_stop(self._drafts[member], piece)
        for member, piece in zip(members, pieces, strict=True):
            draft = self._drafts[member]
            before = len(draft.token_ids)
            draft.token_ids += piece.token_ids
            draft.logprobs += piece.logprobs
            draft.versions += [policy_version] * len(piece.token_ids)
            draft.finish = piece.finish
            if before and self._stops and piece.token_ids:
                self._stop_across(draft, before)

    def _require_stop(self, draft: Draft, piece: Piece) -> None:
        """A server with another tokenizer finds the strings in another text."""
        if piece.finish != "stop" or not self._stops or piece.token_ids[-1] in self._ends:
            return
        ids = (*draft.token_ids, *piece.token_ids)
        shown = (self._decode(ids), self._decode((*self._first.token_ids, *ids)))
        if not any(stop in text for stop in self._stops for text in shown):
            raise BadAnswerError(
                f"a completion stopped at token {ids[-1]}, but its text has none of the stop "
                f"strings {list(self._stops)}: {shown[0][-60:]!r}; does the server have another "
                "tokenizer?"
            )

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
