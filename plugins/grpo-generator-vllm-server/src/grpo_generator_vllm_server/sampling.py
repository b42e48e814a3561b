"""One request for completions, answered by a fleet whose weights may change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.errors import SyncError
from grpo_core.types import GeneratedGroup
from grpo_generator_vllm_server import answer
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.answer import Expected
from grpo_generator_vllm_server.drafts import GroupDraft
from grpo_generator_vllm_server.errors import NoServerLeftError, ServerDownError, ServerLostError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo_core.types import Completion, GenerateRequest
    from grpo_generator_vllm_server.drafts import Decode
    from grpo_generator_vllm_server.fleet import Fleet, Member
    from grpo_generator_vllm_server.request import Draw
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
    """The groups of one request. Members that are finished when weights change stay as they are,
    the others go on where they were."""

    def __init__(self, request: GenerateRequest, fleet: Fleet, way: Way, terms: Terms) -> None:
        self._request, self._fleet, self._way, self._terms = request, fleet, way, terms
        self._groups = [
            GroupDraft(request, index, terms.decode) for index in range(len(request.prompt_ids_P))
        ]
        self._abandoned = False

    def groups(self) -> Iterator[GeneratedGroup]:
        fleet = self._fleet
        with fleet.lock:
            fleet.sampling += 1
        try:
            for index, (completions, version) in fleet.each(len(self._groups), self._ask):
                yield GeneratedGroup(index=index, completions_G=completions, policy_version=version)
            self._require_unchanged()
        finally:
            self._abandoned = True
            with fleet.lock:
                fleet.sampling -= 1

    def _ask(self, member: Member, index: int) -> tuple[tuple[Completion, ...], int]:
        """A whole group from one server; called from many threads, and again with another server
        if this one fails."""
        group = self._groups[index]
        while due := group.due():
            if len(due) == 1:
                self._draw(member, group, *due[0])
                continue
            with ThreadPoolExecutor(len(due)) as pool:
                running = [pool.submit(self._draw, member, group, *each) for each in due]
            for done in running:
                done.result()
        return group.finished()

    def _draw(self, member: Member, group: GroupDraft, draw: Draw, members: list[int]) -> None:
        with member.gate.passing():
            if self._abandoned:
                raise NoServerLeftError("nobody waits for this prompt any more")
            if member.out is not None:
                raise ServerDownError(member.out)
            published = member.published
            assert member.facts is not None
            assert published is not None
            body = requests.body(
                self._request,
                draw,
                model=self._way.served_as(member.facts, published),
                structured_outputs=self._terms.structured_outputs,
            )
            found = member.server.post("/v1/completions", body, seconds=self._terms.seconds)
            expected = Expected(
                vocabulary=self._terms.vocabulary,
                eos_token_ids=self._request.eos_token_ids,
                # Only a sync of our own interrupts, and it waits until this request is out.
                may_be_cut=member.gate.is_shut,
            )
            pieces = answer.pieces(found, draw, expected, server=member.server)
            with self._fleet.lock:
                self._fleet.interrupted += sum(piece.finish is None for piece in pieces)
        group.take(members, pieces, published.policy_version)

    def _require_unchanged(self) -> None:
        """Raises ``SyncError`` if somebody else has sent weights to a server.

        That its process is the one that was synced, every answer has said.
        """
        for member in self._fleet.usable:
            try:
                with member.gate.passing():
                    if member.out is None:
                        require_ours(member, self._way, f"when step {self._request.step} ended")
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
        raise SyncError(
            f"{member.server} was given policy version {due} of this run, and held {held} {when}: "
            "does another run use the same server?"
        )
