"""The roles of a run as typed Protocols: this file is the contract that plugins implement.

A role's variant is built once, by ``Target(config, context)`` (see ``grpo_core.plugins.build``)
or by the user, and then called as an ordinary object. Authors raise ordinary exceptions; the
framework adds which plugin and which call they came from.

**State.** A component that learns, counts or holds the id of a session elsewhere may have
``state_dict() -> dict`` and ``load_state_dict(state)``. Both are called between two steps: the
first for every checkpoint, the second when a run resumes, after ``Reference.start`` and before
``grpo_run_start``. A state is made of ``None``, bool, int, float, str, list, tuple, dict and
tensors, and comes back equal. Each process has its own (a reference's is the main one's). What
follows from the seed and the step, as every random number should, needs none of this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from grpo_core.types.policy import Encoder as Encoder
from grpo_core.types.policy import PolicyHandle as PolicyHandle

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.types import (
        ActionTokens,
        AdvantageRequest,
        AdvantageResult,
        GeneratedGroup,
        GenerateRequest,
        LossOutput,
        Prompt,
        RewardOutcome,
        Rollout,
        RolloutRequest,
        SampledTurn,
        SaveRequest,
        ScoreRequest,
        TurnRequest,
        WeightUpdate,
    )

RewardFunction = Callable[..., Any]
"""TRL's convention: ``fn(prompts, completions, completion_ids, **columns)`` returning one
``float`` or ``None`` per completion, plain or ``async``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildContext:
    """What a component may know of the run it is built for.

    Example: ``BuildContext(role="reward", name="exact-answer", seed=0, run_dir=Path("runs/a"))``.
    """

    role: str
    name: str
    seed: int
    run_dir: Path | None
    """Where a component may write; ``None`` while a config is only being checked."""


@runtime_checkable
class Task(Protocol):
    """Where prompts come from.

    The sequences may be lazy; the core draws indices from them by the run's seed: all in a new
    order every epoch. A training sequence with an attribute ``shares`` (``PromptShare`` for each
    of its consecutive parts, counts adding up to its length) is drawn from by weight instead, each
    part with epochs of its own. Optionally ``rewards() -> Sequence[RewardProvider |
    RewardFunction]`` brings the task's own rewards, used when the config names none, and
    ``eval_sets() -> Mapping[str, Sequence[Prompt]]`` several held-out data sets in place of the one
    of ``eval_prompts``.
    """

    def train_prompts(self) -> Sequence[Prompt]: ...

    def eval_prompts(self) -> Sequence[Prompt]:
        """Held-out prompts; empty when the task has none."""


@runtime_checkable
class Generator(Protocol):
    """Completions for prompts, each token with its log-prob under softmax(logits / T) of the
    weights that sampled it, whatever was cut off or penalised for the draw (see ``Completion``).

    Two optional attributes say how far these can be relied on. ``exact_logprobs = True`` promises
    the trainer's own to rounding (same process, same weights, same precision), so that the core
    need not compute them again. ``processed_logprobs = True`` admits that, with top-p, top-k,
    min-p or a repetition penalty, they are those of the distribution after these, as many servers
    report them: sampler and trainer are then compared by a canary, a few tokens that are sampled
    without these, and what needs log-probs of the trained tokens (replay, losses with
    ``sampling_logprobs``) is refused.

    Two more are for ``train.schedule: ahead``. ``samples_apart = True`` promises weights of its
    own: ``generate`` may be called and consumed in another thread while the policy is updated, and
    ``close`` ends what it is doing there. ``syncs_in_flight = True`` promises besides that ``sync``
    may be called meanwhile from the main thread: completions that are not finished then go on with
    the new weights, and say which token came from which (``Completion.policy_versions``).

    Optionally ``metrics() -> Mapping[str, float]`` tells of the latest sync, under names such as
    ``sync/bytes``; of several processes the greatest value counts. Optionally ``together() ->
    AbstractContextManager[None]`` is entered by every rank around each round of its sampling (a
    step's prompts, a round of dynamic sampling, a held-out data set), without prompts too: for
    generators whose ranks need each other to sample, and ask for it unequally often.
    """

    def sync(self, update: WeightUpdate) -> int:
        """Take over new weights; return the ``policy_version`` now held, read back from where
        sampling will happen, not echoed. Called before the first request and whenever the
        policy has changed."""

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield one group per prompt, in whatever order they finish."""

    def close(self) -> None:
        """Release everything; called once at the end, also after errors."""


@runtime_checkable
class TurnGenerator(Generator, Protocol):
    """A generator that takes up further turns while it is sampling others.

    Optional: ``grpo_core.turns.sample_turns`` serves environments from any ``Generator``, in waves
    where it has not this method.
    """

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Yield each turn that ``request.take`` hands out as soon as it is sampled; end when
        ``take(True)`` has none. Random numbers as ``TurnRequest`` says, so that a first turn is
        what ``generate`` would give to that sample. Threads and syncs as in ``generate``."""


@runtime_checkable
class Environment(Protocol):
    """Turns a generator's completions into whole rollouts.

    Optionally ``rewards() -> Sequence[Reward | RewardProvider | RewardFunction]`` brings rewards of
    its own, which are added to those of the config. A rollout's ``metrics`` become the step's.
    """

    def rollouts(
        self, request: RolloutRequest, generator: Generator
    ) -> Iterator[Sequence[Rollout]]:
        """Yield one whole group at a time, in whatever order they finish."""


@runtime_checkable
class RewardProvider(Protocol):
    """Scores rollouts. Plain functions in TRL's convention are adapted to this.

    It is called group by group while other groups are still being sampled, in a thread or, if
    ``score`` is ``async``, on one event loop that lasts as long as the run; so it must not depend
    on which group comes first. ``needs_batch = True`` asks for all of a step in one call; a
    provider with state (see above) is called so too. ``per_rollout = True`` says that an outcome
    depends on its own rollout alone: where one of a group hangs or kills its worker process, the
    others are asked for again by themselves.

    Optionally ``answer(rollout) -> Hashable | None`` says which answer a rollout gives, so that
    evaluation can report what the majority of several samples does.
    """

    @property
    def name(self) -> str:
        """How metrics and errors call it: ``"exact-answer"``."""

    def score(
        self, request: ScoreRequest
    ) -> Sequence[RewardOutcome] | Awaitable[Sequence[RewardOutcome]]:
        """One outcome per rollout, in order. Async providers are awaited together."""


@runtime_checkable
class Advantage(Protocol):
    """Rewards to advantages, over the rollouts of all ranks.

    ``needs`` may name ``ref_logprobs``, for a KL that is taken off the reward, and ``values``, for
    what a value head expects; the answer then has ``value_targets``, which the loss trains it on.
    """

    def __call__(self, request: AdvantageRequest) -> AdvantageResult: ...


@runtime_checkable
class Loss(Protocol):
    """A per-token objective to minimise.

    ``needs`` (a ``frozenset`` of ``grpo_core.types.Need``) says what the core must compute for
    it, ``aggregation`` (``grpo_core.types.Aggregation``) how its tokens are averaged; a plain
    function without them needs nothing and takes ``token-mean``. ``skips_zero_advantage`` promises
    that a token of advantage 0 has gradient 0, so that the core may leave such rollouts out;
    ``masks_truncated`` asks to leave out those that were cut off. A method
    ``optimizer_step_done(gather)`` is called after each optimizer step; ``gather`` concatenates a
    list over all ranks. A loss must not average over ``tokens``: they are one microbatch of many.
    """

    def __call__(self, tokens: ActionTokens) -> LossOutput: ...


@runtime_checkable
class Reference(Protocol):
    """Where reference log-probs come from, and when the reference moves.

    Not used at all, not even started, when no term of the loss needs reference log-probs.

    Optionally ``equals_policy_version`` (``int | None``) names the policy version whose weights
    the reference has, so that log-probs known from sampling with them are not computed again;
    one that is more than its start has state, as said above.
    """

    def start(self, policy: PolicyHandle) -> None:
        """Called once, before the first optimizer step; raise ``ConfigError`` if it cannot be."""

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
        """One tensor of shape ``(action_count,)`` per rollout, in nats, without gradient, on the
        policy's device; ``None`` means no reference. The policy is left as it was."""

    def step_end(self, step: int) -> None:
        """The policy has finished its updates of this step; the reference may follow."""


@runtime_checkable
class Saver(Protocol):
    """What leaves the run. May also be an observer of lifecycle events.

    A saver that publishes may have ``push(run_dir: Path) -> Sequence[str]``, for ``grpo push``: to
    publish now what an earlier run wrote, and to return the addresses.
    """

    def save(self, request: SaveRequest) -> Path | None:
        """Write completely or not at all; return what was written, or ``None`` if not concerned.

        Called after every checkpoint, where an exception is a warning until the third in a row, and
        at the end. Saving again writes the same, and leaves the policy as it was."""


Observer = object
"""Any object with lifecycle methods marked ``@grpo_core.hookimpl``; see ``grpo_core.hookspecs``."""
