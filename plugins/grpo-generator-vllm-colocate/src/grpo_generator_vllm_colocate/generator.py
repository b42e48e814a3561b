"""The generator `vllm-colocate`: completions from a vLLM engine in the training process."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from grpo_core.errors import DataError, GRPOError, SyncError
from grpo_core.policy import base_of, context_length
from grpo_core.types import GeneratedGroup, SampledTurn
from grpo_generator_vllm_colocate.config import VLLMColocateConfig
from grpo_generator_vllm_colocate.start import start_engine
from grpo_generator_vllm_colocate.ways import Held, Way, choose
from grpo_generator_vllm_server import answer
from grpo_generator_vllm_server import request as requests

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Completion, GenerateRequest, Turn, TurnRequest, WeightUpdate
    from grpo_generator_vllm_colocate.engine import Engine
    from grpo_generator_vllm_server.request import Draw

logger = logging.getLogger(__name__)

NAME = "vllm-colocate"
ENGINE = "the vLLM engine of this process"
TURN_STEPS = 4
"""Tokens between two looks for new turns: each costs 0.2 ms on a CPU, to leave the process as it
was found."""

T = TypeVar("T")


class VLLMColocateGenerator:
    """Samples with a vLLM engine in the training process, one per rank, made at the first sync.

    Log-probs are those of the distribution that was sampled from: with top-p, top-k, min-p or a
    repetition penalty not the policy's own. Sampling is by seeds per (seed, step, prompt, sample):
    batches and ranks change no random number, but the last bits of logits, and so now and then a
    token.
    """

    processed_logprobs = True
    # Not `samples_apart`, although the weights are its own: engine and policy share one device and
    # one process, so that sampling beside the update would only make both slower.

    def __init__(
        self, config: VLLMColocateConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or VLLMColocateConfig()
        self._run = f"grpo-{secrets.token_hex(4)}"
        self._engine: Engine | None = None
        self._way: Way | None = None
        self._held: Held | None = None
        self._refusal = "sync() must come before generate()"
        """Why there is nothing to sample from, while ``_held`` is ``None``."""
        self._vocabulary = 0
        self._context_length: int | None = None

    # -- weights ------------------------------------------------------------------------------

    def sync(self, update: WeightUpdate) -> int:
        """Have the engine take the weights, and ask it which it has.

        After a failure nothing is sampled until a later sync succeeds; an engine that holds parts
        of two policies is replaced by that one.

        Raises:
            SyncError: the engine has not taken them.
            ConfigError: there can be no engine; see ``start_engine``.
        """
        version = update.policy_version
        self._held = None
        self._refusal = f"the sync to policy version {version} did not end"
        try:
            held = self._pushed(update)
        except GRPOError as error:
            self._refusal = f"the sync to policy version {version} failed: {error}"
            raise
        except Exception as error:
            self._refusal = f"the sync to policy version {version} failed: {error}"
            if self._engine is not None:
                self._engine.broken = self._refusal
            raise SyncError(f"{ENGINE} has not taken policy version {version}: {error}") from error
        self._held = held
        return held.policy_version

    def _pushed(self, update: WeightUpdate) -> Held:
        config: Any = base_of(update.model).config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self._context_length = context_length(update.model)
        if self._engine is not None and self._engine.broken is not None:
            logger.warning("%s is made again: %s", ENGINE, self._engine.broken)
            self._engine.close()
            self._engine = None
        self._way = self._way or choose(self._config, update)
        if self._engine is None:
            self._engine = start_engine(self._config, update, self._way.lora_rank)
        self._engine.abandon()
        self._engine.wake(weights_only=True)
        return self._way.push(self._engine, update, f"{self._run}.v{update.policy_version}")

    # -- sampling -----------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups as they are complete.

        Raises:
            DataError: a prompt is empty, or too long with ``max_tokens``.
            ConfigError: the request cannot be served.
            SyncError: there are no weights, or others were given while these were sampled from.
            EngineError: vLLM failed.
        """
        # Not a generator function itself: a wrong request fails here, not at the first `next`.
        engine, held = self._ready()
        requests.check(request, self._context_length, generator=NAME)
        for ids in request.prompt_ids_P:
            if len(ids) + request.sampling.max_tokens > engine.max_model_len:
                raise DataError(
                    f"a prompt of {len(ids)} tokens and sampling.max_tokens "
                    f"{request.sampling.max_tokens} are more than generator.max_model_len "
                    f"{engine.max_model_len}"
                )
        return self._groups(request, engine, held)

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Yield turns as they end; those that become ready meanwhile join.

        Raises:
            DataError: a rollout may become longer than the model's context, or the engine's.
            ConfigError: the request cannot be served.
            SyncError: there are no weights, or others were given while these were sampled from.
            EngineError: vLLM failed.
        """
        engine, held = self._ready()
        room = min(engine.max_model_len, self._context_length or engine.max_model_len)
        requests.check_turns(request, room)
        return self._turns(request, engine, held)

    def _ready(self) -> tuple[Engine, Held]:
        if self._held is None or self._engine is None:
            raise SyncError(f"generator {NAME!r} has nothing to sample from: {self._refusal}")
        return self._engine, self._held

    def _groups(
        self, request: GenerateRequest, engine: Engine, held: Held
    ) -> Iterator[GeneratedGroup]:
        count = len(request.prompt_ids_P)
        waiting = [[(index, requests.first_draw(request, index)) for index in range(count)]]
        for index, completions in self._sampled(
            request, engine, held, lambda wait: waiting.pop() if waiting else ()
        ):
            yield GeneratedGroup(
                index=index,
                completions_G=completions * (request.group_size // len(completions)),
                policy_version=held.policy_version,
            )

    def _turns(self, request: TurnRequest, engine: Engine, held: Held) -> Iterator[SampledTurn]:
        def take(wait: bool) -> Iterable[tuple[Turn, Draw]]:
            return [(turn, requests.turn_draw(request, turn)) for turn in request.take(wait)]

        for turn, (completion,) in self._sampled(request, engine, held, take, most=TURN_STEPS):
            yield SampledTurn(turn=turn, completion=completion, policy_version=held.policy_version)

    def _sampled(
        self,
        request: GenerateRequest | TurnRequest,
        engine: Engine,
        held: Held,
        take: Callable[[bool], Iterable[tuple[T, Draw]]],
        *,
        most: float = inf,
    ) -> Iterator[tuple[T, tuple[Completion, ...]]]:
        """What draws have come to, as they end; ``take`` is as in ``TurnRequest``, and asked again
        after ``most`` steps."""
        left: dict[str, tuple[T, Draw]] = {}
        expected = answer.Expected(
            vocabulary=self._vocabulary, eos_token_ids=request.eos_token_ids, may_be_cut=False
        )
        try:
            while True:
                new = take(not left)
                self._require_held(held, request)
                engine.wake()
                for what, draw in new:
                    fields = requests.sampling_fields(request, draw)
                    name = engine.submit(
                        draw.token_ids, fields, self._config.structured_outputs, held
                    )
                    left[name] = what, draw
                if not left:
                    return
                for name, output in engine.finished(list(left), most=most):
                    what, draw = left.pop(name)
                    found = _as_answer(output, held)
                    yield what, answer.whole(answer.pieces(found, draw, expected, server=ENGINE))
        finally:
            engine.release(left)

    def _require_held(self, held: Held, request: GenerateRequest | TurnRequest) -> None:
        if self._held is not held:
            raise SyncError(
                f"generator {NAME!r} was synced or closed while it was sampling step "
                f"{request.step} at policy version {held.policy_version}: the rest of the request "
                "would come from other weights"
            )

    def close(self) -> None:
        """End the engine; a later sync would make another."""
        self._held, self._refusal = None, "it has been closed"
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._way is not None:
            self._way.close()
            self._way = None


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
        found = zip(ids, one.logprobs or (), strict=False)
        logprobs = [at[i].logprob if i in at else None for i, at in found]
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
