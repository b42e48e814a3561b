"""One request in the engine's hands: handed over, and taken back as checked completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from grpo_core.errors import SyncError
from grpo_core.settings import SamplingParams
from grpo_core.types import GeneratedGroup, GenerateRequest
from grpo_generator_vllm_server import answer
from grpo_generator_vllm_server import request as requests

if TYPE_CHECKING:
    from grpo_core.types import Completion, TurnRequest
    from grpo_generator_vllm_colocate.engine import Engine
    from grpo_generator_vllm_colocate.ways import Held
    from grpo_generator_vllm_server.request import Draw

ENGINE = "the vLLM engine of this process"

T = TypeVar("T")
"""What a draw is for: a prompt's position, or a turn."""


class Batch(Generic[T]):
    """What is being sampled of a request.

    Args:
        vocabulary: number of token ids of the policy.
        structured_outputs: see ``VLLMColocateConfig``.
    """

    def __init__(
        self,
        request: GenerateRequest | TurnRequest,
        held: Held,
        *,
        vocabulary: int,
        structured_outputs: Mapping[str, Any] | None,
    ) -> None:
        self._request, self._held = request, held
        self._structured_outputs = structured_outputs
        self._expected = answer.Expected(
            vocabulary=vocabulary,
            eos_token_ids=request.eos_token_ids,
            may_be_cut=False,
            ends_by_token=not request.sampling.stop and structured_outputs is None,
        )
        self.left: dict[str, tuple[T, Draw]] = {}
        """What is not back yet, by the engine's name for it."""

    def submit(self, engine: Engine, asked: Iterable[tuple[T, Draw]]) -> None:
        """Hand draws over.

        Raises:
            RequestRefusedError: vLLM does not take one; those before it are in ``left``.
        """
        for what, draw in asked:
            fields = requests.sampling_fields(self._request, draw)
            name = engine.submit(draw.token_ids, fields, self._structured_outputs, self._held)
            self.left[name] = what, draw

    def take(self, name: str, output: Any) -> tuple[T, tuple[Completion, ...]]:
        """What came back under a name.

        Raises:
            BadAnswerError: it is not what was asked for.
            SyncError: it was sampled with another adapter.
        """
        what, draw = self.left.pop(name)
        found = _as_answer(output, self._held)
        return what, answer.whole(answer.pieces(found, draw, self._expected, server=ENGINE))


def group_draws(request: GenerateRequest) -> list[tuple[int, Draw]]:
    """One for each prompt, with its position."""
    return [(at, requests.first_draw(request, at)) for at in range(len(request.prompt_ids_P))]


def group_of(
    request: GenerateRequest, index: int, completions: tuple[Completion, ...], policy_version: int
) -> GeneratedGroup:
    """The group of a prompt; a completion that was drawn for all its members counts for each."""
    return GeneratedGroup(
        index=index,
        completions_G=completions * (request.group_size // len(completions)),
        policy_version=policy_version,
    )


def as_json(request: GenerateRequest) -> dict[str, Any]:
    """A request, of text alone, as other ranks get it."""
    found = {field.name: getattr(request, field.name) for field in fields(request)}
    del found["inputs_P"]
    return {**found, "sampling": request.sampling.model_dump(mode="json")}


def from_json(found: Mapping[str, Any]) -> GenerateRequest:
    """What ``as_json`` was given."""
    return GenerateRequest(
        **{
            **found,
            "prompt_ids_P": tuple(tuple(ids) for ids in found["prompt_ids_P"]),
            "prompt_keys_P": tuple(found["prompt_keys_P"]),
            "eos_token_ids": tuple(found["eos_token_ids"]),
            "sampling": SamplingParams(**found["sampling"]),
        }
    )


def _as_answer(output: Any, held: Held) -> dict[str, Any]:
    """vLLM's object in the form of its server's answers, whose checks then hold for both.

    Raises:
        SyncError: it was not sampled with the adapter that was asked for.
    """
    asked = getattr(held.adapter, "lora_name", None)
    used = getattr(output.lora_request, "lora_name", None)
    if used != asked:
        raise SyncError(f"{ENGINE} sampled with the adapter {used}, not with {asked}")
    choices = []
    for one in output.outputs:
        ids = list(one.token_ids)
        flat = one.logprobs
        # Of each position the sampled token's alone, or they are of something else.
        logprobs = list(flat.logprobs) if flat is not None and flat.token_ids == ids else []
        choices.append(
            {
                "index": one.index,
                "token_ids": ids,
                "logprobs": {"token_logprobs": logprobs},
                "finish_reason": one.finish_reason,
                "prompt_token_ids": output.prompt_token_ids,
            }
        )
    return {"choices": choices}
