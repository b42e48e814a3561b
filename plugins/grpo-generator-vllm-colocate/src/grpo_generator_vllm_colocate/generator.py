"""The generator `vllm-colocate`: completions from a vLLM engine in the training process."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from grpo_core.errors import DataError, GRPOError, SyncError
from grpo_core.policy import base_of, context_length
from grpo_core.turns import waves
from grpo_core.types import SampledTurn
from grpo_generator_vllm_colocate.batch import ENGINE, Batch, group_draws, group_of
from grpo_generator_vllm_colocate.config import VLLMColocateConfig
from grpo_generator_vllm_colocate.errors import PeerError
from grpo_generator_vllm_colocate.ranks import Ranks
from grpo_generator_vllm_colocate.start import start_engine
from grpo_generator_vllm_colocate.ways import Held, Way, choose
from grpo_generator_vllm_server import request as requests

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import (
        Completion,
        GeneratedGroup,
        GenerateRequest,
        Turn,
        TurnRequest,
        WeightUpdate,
    )
    from grpo_generator_vllm_colocate.engine import Engine
    from grpo_generator_vllm_colocate.lockstep import Lockstep
    from grpo_generator_vllm_server.request import Draw

logger = logging.getLogger(__name__)

NAME = "vllm-colocate"
TURN_STEPS = 4
"""Tokens between two looks for new turns: each costs 0.2 ms on a CPU, to leave the process as it
was found."""

T = TypeVar("T")


class VLLMColocateGenerator:
    """Samples with a vLLM engine in the training process, made at the first sync: one per rank, or
    with ``tensor_parallel_size`` one per so many neighbouring ranks.

    Log-probs are those of the distribution that was sampled from: with top-p, top-k, min-p or a
    repetition penalty not the policy's own. Sampling is by seeds per (seed, step, prompt, sample):
    batches and ranks change no random number, but the last bits of logits, and so now and then a
    token.

    ``sync`` and ``close`` are for all ranks at the same point. Ranks that share an engine also
    sample together: the first group that is asked for of ``generate`` waits until each of them
    asks for one or leaves ``together``, then all that any of them wants is sampled, and what
    follows comes from memory. So it does not matter how fast groups are taken, how many each rank
    wants, or whether one stops early.
    """

    processed_logprobs = True
    # Not `samples_apart`, although the weights are its own: engine and policy share one device and
    # one process, so that sampling beside the update would only make both slower.

    def __init__(
        self, config: VLLMColocateConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or VLLMColocateConfig()
        self._run = f"grpo-{secrets.token_hex(4)}"
        self._ranks: Ranks | None = None
        self._engine: Engine | None = None
        self._lockstep: Lockstep | None = None
        self._way: Way | None = None
        self._held: Held | None = None
        self._refusal = "sync() must come before generate()"
        """Why there is nothing to sample from, while ``_held`` is ``None``."""
        self._vocabulary = 0
        self._context_length: int | None = None

    # -- weights ------------------------------------------------------------------------------

    def sync(self, update: WeightUpdate) -> int:
        """Have the engine take the weights, and ask it which it has; all ranks, or none.

        After a failure nothing is sampled until a later sync succeeds; an engine that holds parts
        of two policies is replaced by that one.

        Raises:
            SyncError: the engine has not taken them.
            PeerError: that of another rank has not.
            ConfigError: there can be no engine; see ``start_engine``.
        """
        version = update.policy_version
        self._held = self._lockstep = None
        self._refusal = f"the sync to policy version {version} did not end"
        self._ranks = self._ranks or Ranks(self._config)
        try:
            engine = self._engine_for(update, self._ranks)
            assert self._way is not None
            held = self._way.push(engine, update, f"{self._run}.v{version}")
            self._ranks.agree()
            self._lockstep = self._ranks.lockstep(engine, held, self._batch)
        except PeerError as error:
            self._refusal = f"the sync to policy version {version} failed: {error}"
            raise
        except GRPOError as error:
            self._refusal = f"the sync to policy version {version} failed: {error}"
            self._ranks.fail(str(error))
            raise
        except Exception as error:
            self._refusal = f"the sync to policy version {version} failed: {error}"
            if self._engine is not None:
                self._engine.broken = self._refusal
            self._ranks.fail(str(error))
            raise SyncError(f"{ENGINE} has not taken policy version {version}: {error}") from error
        self._held = held
        return held.policy_version

    def _engine_for(self, update: WeightUpdate, ranks: Ranks) -> Engine:
        """The engine, awake for new weights; a new one where there is none, or one that failed."""
        config: Any = base_of(update.model).config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self._context_length = context_length(update.model)
        if self._engine is not None and self._engine.broken is not None:
            logger.warning("%s is made again: %s", ENGINE, self._engine.broken)
        self._way = self._way or choose(self._config, update)
        # On all ranks or on none: they make process groups together.
        if ranks.agree(self._engine is None or self._engine.broken is not None):
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = start_engine(self._config, update, self._way.lora_rank, ranks)
        assert self._engine is not None
        self._engine.abandon()
        self._engine.wake(weights_only=True)
        return self._engine

    # -- sampling -----------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """A round of sampling, for every rank at the same point, whether it has prompts or not.

        Inside, each calls ``generate`` as often as it needs to. Leaving it takes part in what the
        ranks that share this engine still sample; leaving it by an exception ends theirs.

        Raises:
            PeerError: another rank failed, or does not come.
        """
        try:
            yield
            if self._lockstep is not None:
                self._lockstep.serve()
        except BaseException as error:
            if self._lockstep is not None:
                self._lockstep.fail(f"{type(error).__name__}: {error}")
            raise

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups as they are complete; all at once where ranks share the engine.

        Raises:
            DataError: a prompt is empty, or too long with ``max_tokens``.
            ConfigError: the request cannot be served.
            SyncError: there are no weights, or others were given while these were sampled from.
            EngineError: vLLM failed.
            PeerError: another rank of the same engine failed, or does not come.
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
        if self._lockstep is not None:
            return self._shared_groups(request, self._lockstep, held)
        return self._groups(request, engine, held)

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Yield turns as they end; those that become ready meanwhile join, or, where ranks share
        the engine, are the next wave.

        Raises:
            DataError: a rollout may become longer than the model's context, or the engine's.
            ConfigError: the request cannot be served.
            SyncError: there are no weights, or others were given while these were sampled from.
            EngineError: vLLM failed.
            PeerError: another rank of the same engine failed, or does not come.
        """
        engine, held = self._ready()
        room = min(engine.max_model_len, self._context_length or engine.max_model_len)
        requests.check_turns(request, room)
        if self._lockstep is not None:
            return waves(self, request)
        return self._turns(request, engine, held)

    def _ready(self) -> tuple[Engine, Held]:
        if self._held is None or self._engine is None:
            raise SyncError(f"generator {NAME!r} has nothing to sample from: {self._refusal}")
        return self._engine, self._held

    def _groups(
        self, request: GenerateRequest, engine: Engine, held: Held
    ) -> Iterator[GeneratedGroup]:
        waiting = [group_draws(request)]
        for index, completions in self._sampled(
            request, engine, held, lambda wait: waiting.pop() if waiting else ()
        ):
            yield group_of(request, index, completions, held.policy_version)

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
        batch: Batch[T] = self._batch(request)
        try:
            while True:
                new = take(not batch.left)
                self._require_held(held, request)
                engine.wake()
                batch.submit(engine, new)
                if not batch.left:
                    return
                for name, output in engine.finished(list(batch.left), most=most):
                    yield batch.take(name, output)
        finally:
            engine.release(batch.left)

    def _shared_groups(
        self, request: GenerateRequest, lockstep: Lockstep, held: Held
    ) -> Iterator[GeneratedGroup]:
        self._require_held(held, request)
        yield from lockstep.sample(request)

    def _batch(self, request: GenerateRequest | TurnRequest) -> Batch[Any]:
        assert self._held is not None
        return Batch(
            request,
            self._held,
            vocabulary=self._vocabulary,
            structured_outputs=self._config.structured_outputs,
        )

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
        if self._lockstep is not None:
            self._lockstep.fail("it has closed its generator")
            self._lockstep = None
        if self._ranks is not None:
            self._ranks.fail("it has closed its generator")
            self._ranks = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._way is not None:
            self._way.close()
            self._way = None
