"""One request for completions, answered by a fleet whose weights may change meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.errors import SyncError
from grpo_core.types import GeneratedGroup, SampledTurn
from grpo_generator_vllm_server import answer
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.answer import Expected
from grpo_generator_vllm_server.drafts import GroupDraft
from grpo_generator_vllm_server.errors import NoServerLeftError, ServerDownError, ServerLostError
from grpo_generator_vllm_server.sync import touched
from grpo_generator_vllm_server.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo_core.types import GenerateRequest, Turn, TurnRequest
    from grpo_generator_vllm_server.answer import Piece
    from grpo_generator_vllm_server.drafts import Call, Decode
    from grpo_generator_vllm_server.fleet import Fleet, Member
    from grpo_generator_vllm_server.sync import Way


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for all requests of a generator."""

    vocabulary: int
    decode: Decode
    seconds: float
    """Longest wait for the completions of one prompt."""
    structured_outputs: Mapping[str, Any] | None


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Token ids to text as vLLM's search for stop strings reads it."""

    def decode(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    return decode


class Sampling:
    """The completions of one request. Those that are finished when weights change stay as they
    are, the others go on where they were."""

    def __init__(self, fleet: Fleet, way: Way, terms: Terms) -> None:
        self._fleet, self._way, self._terms = fleet, way, terms
        self._abandoned = False

    def groups(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Each prompt's group when it is whole."""
        drafts = {
            GroupDraft.of_group(request, index, self._terms.decode): index
            for index in range(len(request.prompt_ids_P))
        }
        waiting = [list(drafts)]
        for draft in self._finished(request, lambda wait: waiting.pop() if waiting else ()):
            completions, version = draft.finished()
            yield GeneratedGroup(
                index=drafts[draft], completions_G=completions, policy_version=version
            )

    def turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Each turn when it has been sampled, while others begin."""
        asked: dict[GroupDraft, Turn] = {}

        def take(wait: bool) -> Iterable[GroupDraft]:
            decode = self._terms.decode
            new = {GroupDraft.of_turn(request, turn, decode): turn for turn in request.take(wait)}
            asked.update(new)
            return new

        for draft in self._finished(request, take):
            (completion,), version = draft.finished()
            yield SampledTurn(turn=asked.pop(draft), completion=completion, policy_version=version)

    def _finished(
        self,
        request: GenerateRequest | TurnRequest,
        take: Callable[[bool], Iterable[GroupDraft]],
    ) -> Iterator[GroupDraft]:
        """Drafts as they are finished; ``take`` is as in ``TurnRequest``."""
        fleet = self._fleet
        work = Work(fleet, self._ask, group=request.group_size)
        with fleet.lock:
            fleet.sampling += 1
        try:
            while True:
                for draft in take(work.idle):
                    work.add(draft.due())
                if work.idle:
                    break
                call = work.next()
                if call is None:
                    continue
                work.add(call.draft.due(call.members))
                if call.draft.is_finished:
                    yield call.draft
            self._require_unchanged(request.step)
        finally:
            self._abandoned = True
            work.close()
            with fleet.lock:
                fleet.sampling -= 1

    def _ask(self, member: Member, call: Call) -> tuple[list[Piece], int]:
        """What a server answers, and the policy version of it; called from many threads."""
        with member.gate.passing():
            if self._abandoned:
                raise NoServerLeftError("nobody waits for this prompt any more")
            if member.out is not None:
                raise ServerDownError(member.out)
            published = member.published
            assert member.facts is not None
            assert published is not None
            body = requests.body(
                call.draft.request,
                call.draw,
                model=self._way.served_as(member.facts, published),
                structured_outputs=self._terms.structured_outputs,
            )
            found = member.server.post("/v1/completions", body, seconds=self._terms.seconds)
            expected = Expected(
                vocabulary=self._terms.vocabulary,
                eos_token_ids=call.draft.request.eos_token_ids,
                # Only a sync of our own interrupts, and it waits until this request is out.
                may_be_cut=member.gate.is_shut,
                ends_by_token=(
                    not call.draft.request.sampling.stop and self._terms.structured_outputs is None
                ),
            )
            pieces = answer.pieces(found, call.draw, expected, server=member.server)
            with self._fleet.lock:
                self._fleet.interrupted += sum(piece.finish is None for piece in pieces)
        return pieces, published.policy_version

    def _require_unchanged(self, step: int) -> None:
        """Raises ``SyncError`` if somebody else has sent weights to a server.

        That its process is the one that was synced, every answer has said.
        """
        for member in self._fleet.usable:
            try:
                with member.gate.passing():
                    if member.out is None:
                        require_ours(member, self._way, f"when step {step} ended")
            except ServerLostError as error:
                # Its completions came from the process that was synced; what it does now is next.
                self._fleet.require_open()
                member.take_out(error)


def require_ours(member: Member, way: Way, when: str) -> None:
    """Raises ``SyncError`` unless the server holds what this generator gave to it last."""
    assert member.published is not None
    due = member.published.policy_version
    held = way.held(member.server, member.published)
    if held != due:
        said = touched(member.server)
        raise SyncError(
            f"{member.server} was given policy version {due} of this run, and held {held} {when}"
            f"{f' ({said})' if said else ''}: does another run use the same server?"
        )
