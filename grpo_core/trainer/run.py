"""A run: one object per role, and the verbs of the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from grpo_core.attribution import attributed, describe
from grpo_core.batching import Minibatch, RolloutBatch, plan_minibatches, plan_weights
from grpo_core.builtin.single_turn import SingleTurn
from grpo_core.errors import PluginError, SyncError
from grpo_core.hooks import Lifecycle
from grpo_core.metrics import StepMetrics
from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.settings import SamplingParams
from grpo_core.trainer import canary
from grpo_core.trainer.advantages import compute_advantages
from grpo_core.trainer.ahead import Ahead
from grpo_core.trainer.attestation import attest, comparable, exact, require_version
from grpo_core.trainer.dynamic_sampling import chosen, joined, resample, trained_rows
from grpo_core.trainer.entropy_ranks import rank_entropies
from grpo_core.trainer.logprobs import find_old_logprobs, old_values, reference_logprobs
from grpo_core.trainer.observe import observe_rewards, observe_sampled, observe_tokens
from grpo_core.trainer.progress import progress
from grpo_core.trainer.prompts import PromptStream
from grpo_core.trainer.replay import ReplayBuffer
from grpo_core.trainer.result import RunResult
from grpo_core.trainer.sampling import collect, places, together, training_request
from grpo_core.trainer.session import Session
from grpo_core.trainer.skips import contributing, masked_rows
from grpo_core.trainer.sources import observe_sources
from grpo_core.types import Need, Rollout, RolloutsScored, ScoredRollouts, WeightsSynced

if TYPE_CHECKING:
    from grpo_core.policy import MicroBatch, Policy
    from grpo_core.protocols import (
        Advantage,
        Environment,
        Generator,
        Loss,
        Reference,
        RewardFunction,
        RewardProvider,
        Saver,
        Task,
    )
    from grpo_core.settings import CheckpointSettings, EvaluationSettings, TrainSettings
    from grpo_core.types import ActionTokens, Aggregation, LossOutput


class Run:
    """One object per role; ``train(run)`` does the rest.

    ``grpo_core.load_run`` builds one from a config; by hand::

        run = Run(
            policy=Policy(ModelSettings(path="Qwen/Qwen3-0.6B")),
            task=DatasetTask(DatasetConfig(path="train.jsonl")),
            generator=HFGenerator(),
            rewards=[my_function],
            advantage=GroupAdvantage(),
            loss=Dapo(),
            settings=TrainSettings(steps=100),
            output="runs/first",
        )
    """

    def __init__(
        self,
        *,
        policy: Policy,
        task: Task,
        generator: Generator,
        advantage: Advantage,
        loss: Loss,
        settings: TrainSettings,
        output: str | Path,
        rewards: Sequence[Reward | RewardProvider | RewardFunction] = (),
        sampling: SamplingParams | None = None,
        environment: Environment | None = None,
        reference: Reference | None = None,
        savers: Sequence[Saver] = (),
        observers: Sequence[object] = (),
        evaluation: EvaluationSettings | None = None,
        checkpoints: CheckpointSettings | None = None,
        config: Mapping[str, Any] | None = None,
        manifest: Sequence[Mapping[str, Any]] = (),
        labels: Mapping[int, str] | None = None,
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            rewards: providers or plain functions, with ``Reward(...)`` around those that need a
                weight; empty takes the task's own.
            checkpoints: when to write them; none are written when ``None``.
            config: what to write into ``config.yaml``; the settings when ``None``.
            manifest: what to write into ``components.json``.
            labels: ``id(component)`` to how errors call it; by default role and class.
        """
        self.policy = policy
        self.task = task
        self.generator = generator
        self.advantage = advantage
        self.settings = settings
        self.sampling = sampling or SamplingParams()
        self.environment = environment or SingleTurn()
        self.reference = reference
        self.savers = tuple(savers)
        self.observers = tuple(observers)
        self.evaluation = evaluation
        self.output = Path(output)
        self.rewards = tuple(
            r if isinstance(r, Reward) else Reward(provider=r)
            for source in (
                rewards or getattr(task, "rewards", tuple)(),
                getattr(self.environment, "rewards", tuple)(),
            )
            for r in source
        )
        self.scorer = Scorer(self.rewards, gather=policy.gather, progress=partial(progress, self))
        self._loss = loss
        self._labels = dict(labels or {})
        self.advantage_needs: frozenset[Need] = frozenset(getattr(advantage, "needs", ()))
        self.loss_needs: frozenset[Need] = frozenset(getattr(loss, "needs", ()))
        self.needs = self.loss_needs | self.advantage_needs
        self.aggregation: Aggregation = getattr(loss, "aggregation", "token-mean")
        self.config = dict(config) if config is not None else self._settings_as_config()
        self.manifest = tuple(manifest)
        self.lifecycle = Lifecycle(
            (self.label_of("observer" if c in observers else "saver", c), c)
            for c in (*observers, *self.savers)
        )
        self.metrics = StepMetrics()
        dynamic = settings.dynamic_sampling
        replayed = dynamic.replay_groups if dynamic else 0
        self.replay = ReplayBuffer(replayed) if replayed else None
        self.prompts = PromptStream(
            task.train_prompts(), per_step=settings.prompts_per_step, seed=settings.seed
        )
        self.ahead = Ahead(self)
        self._session = Session(self, checkpoints)

    # -- the verbs of the loop, in its order ----------------------------------------------------

    def session(
        self, resume: str | None = None, *, accept_changes: bool = False
    ) -> AbstractContextManager[None]:
        """Everything before the first step and after the last one; see ``train``."""
        return self._session.opened(resume, accept_changes=accept_changes)

    def steps(self) -> Iterator[int]:
        """The steps that are left, until the last or until somebody asks to stop."""
        for step in range(self._session.steps_done, self.settings.steps):
            # Asked of all ranks: one that stops alone leaves the others waiting for ever.
            if any(self.policy.gather([self._session.stop_requested])):
                return
            self._session.checkpoints.step_begins()
            self.metrics = StepMetrics()
            self._step_started = perf_counter()
            yield step

    def sync_weights(self, step: int) -> None:
        """Hand the policy's weights to the generator and make sure that they have arrived.

        Raises:
            SyncError: the generator reports another version than it was given.
        """
        self.ahead.rest()
        with self.metrics.timed("sync"), self.attributed("generator", self.generator, "sync"):
            held = self.generator.sync(self.policy.weight_update())
        if held != self.policy.version:
            raise SyncError(
                f"{self.label_of('generator', self.generator)} holds policy version {held} after "
                f"being given version {self.policy.version}: it would sample from old weights"
            )
        if hasattr(self.generator, "metrics"):
            with self.attributed("generator", self.generator, "metrics"):
                for name, value in self.generator.metrics().items():
                    self.metrics.maximum(name, value)
        if self.policy.is_main:
            self.lifecycle.weights_synced(
                WeightsSynced(step=step, policy_version=held, seconds=self.metrics.seconds("sync"))
            )

    def rollouts(self, step: int) -> list[Rollout]:
        """Whole groups for this rank's share of the step's prompts, in order."""
        canary.compare(self, step)
        if self.settings.schedule == "ahead":
            return self.ahead.rollouts(step)
        return self.sample_round(step, 0, places(self))

    def sample_round(self, step: int, number: int, places: Sequence[int]) -> list[Rollout]:
        """One group at each of some places among the step's prompts; round 0 is the step's own,
        later ones replace its groups."""
        with self.metrics.timed("sample"), together(self):
            request = training_request(self, step, places, number=number)
            rollouts = collect(self, request, partial(self.scorer.submit, step))
        require_version(self, rollouts)
        observe_sampled(self.metrics, rollouts)
        return rollouts

    def score(
        self, step: int, rollouts: Sequence[Rollout], *, part: bool = False
    ) -> ScoredRollouts:
        """What every reward provider says of every rollout; ``part`` as in ``Scorer.score``."""
        with self.metrics.timed("score"):
            scored = self.scorer.score(step, rollouts, part=part)
        observe_rewards(self.metrics, scored, self.scorer.work)
        observe_sources(self.metrics, rollouts, scored)
        return scored

    def resample(
        self, step: int, rollouts: Sequence[Rollout], scored: ScoredRollouts
    ) -> tuple[list[Rollout], ScoredRollouts]:
        """Others in place of groups without signal, if ``train.dynamic_sampling`` asks for it."""
        found = resample(self, step, rollouts, scored)
        if self.settings.schedule == "ahead":
            self.ahead.go_on(step)
        return found

    def advantages(
        self, step: int, rollouts: Sequence[Rollout], scored: ScoredRollouts
    ) -> RolloutBatch:
        """Advantages over all ranks, and the update's plan: minibatches, weights, log-probs."""
        sampled, rows = rollouts, trained_rows(rollouts, self.settings.prompts_per_step)
        rollouts = [sampled[row] for row in rows]
        ref_logprobs = reference_logprobs(self, rollouts)
        values = old_values(self, rollouts)
        found = compute_advantages(self, rollouts, chosen(scored, rows), ref_logprobs, values)
        assert found.advantages_B is not None
        assert found.token_advantages is not None
        shown = dict(zip(rows, found.advantages_B.tolist(), strict=True))
        self._publish(step, sampled, scored, shown)
        plan = plan_minibatches(
            [r.group for r in rollouts],
            minibatches=self.settings.minibatches_per_step,
            passes=self.settings.passes_per_step,
            seed=(self.settings.seed, step, self.policy.rank),
        )
        masked = masked_rows(self, rollouts)
        weights = plan_weights(
            plan,
            [r.action_count for r in rollouts],
            self.aggregation,
            max_tokens=self.sampling.max_tokens,
            ranks=self.policy.ranks,
            sum_over_ranks=self.policy.sum_over_ranks,
            masked=masked,
        )
        batch = RolloutBatch(
            rollouts=rollouts,
            advantages=found.token_advantages,
            ref_logprobs=ref_logprobs,
            old_values=values,
            value_targets=found.value_targets,
            plan=plan,
            weights=weights,
            contributes=contributing(self, masked, rollouts, found.token_advantages),
            sampler_differs=comparable(self) and not exact(self),
        )
        if "entropy_rank" in self.needs:
            rank_entropies(self, batch, masked)
        if "old_logprobs" in self.needs:
            find_old_logprobs(self, batch)
        return batch

    def loss(self, tokens: ActionTokens) -> LossOutput:
        """The loss of every action token.

        Raises:
            PluginError: the loss raised, or averaged where it should not.
        """
        with self.attributed("loss", self._loss, "__call__"):
            out = self._loss(tokens)
        if out.loss_N.shape != tokens.logprobs_N.shape:
            raise PluginError(
                f"{self.label_of('loss', self._loss)} returned loss_N of shape "
                f"{tuple(out.loss_N.shape)} for {len(tokens.logprobs_N)} action tokens; return one "
                "loss per token, the core averages"
            )
        return out

    def observe(self, micro: MicroBatch, tokens: ActionTokens, out: LossOutput) -> None:
        """Take the microbatch's metrics."""
        told = comparable(self)
        compared_B = [
            told and self.is_current(micro.minibatch.rollouts[i]) for i in micro.inputs.rows
        ]
        observe_tokens(self.metrics, micro, tokens, out, self.policy.ranks, compared_B)

    def optimizer_step(self, minibatch: Minibatch) -> None:
        """Compare sampler and trainer before the first step, then move the weights.

        Raises:
            SyncError: their log-probs of the same tokens are further apart than
                ``max_sampler_mismatch``.
        """
        if minibatch.first:
            attest(self)
        done = self.policy.step()
        self.metrics.mean("optim/grad_norm", done.grad_norm)
        self.metrics.mean("optim/learning_rate", done.learning_rate)
        self.metrics.sum("optim/skipped", float(done.skipped) / self.policy.ranks)
        if hasattr(self._loss, "optimizer_step_done"):
            with self.attributed("loss", self._loss, "optimizer_step_done"):
                self._loss.optimizer_step_done(self.policy.gather)

    def finish_step(self, step: int) -> None:
        """Reference, metrics, notices, evaluation, observers."""
        if self.reference is not None and self.uses_reference:
            with self.attributed("reference", self.reference, "step_end"):
                self.reference.step_end(step)
        self.metrics.maximum("time/step", perf_counter() - self._step_started)
        self._session.step_done(step)

    def result(self) -> RunResult:
        """What came of it; complete once the session is closed."""
        session = self._session
        return RunResult(
            status="interrupted" if session.status == "interrupted" else "finished",
            steps_done=session.steps_done,
            run_dir=self.output,
            history=tuple(session.history),
            evaluations=tuple(session.evaluations),
            artifacts=dict(session.artifacts),
        )

    # -- who is who, for errors ------------------------------------------------------------------

    def label(self, role: str) -> str:
        """How errors call the component of a single-valued role."""
        return self.label_of(role, self.component(role))

    def component(self, role: str) -> object:
        """The component of a single-valued role."""
        return self._loss if role == "loss" else getattr(self, role)

    def attributed(self, role: str, component: object, call: str) -> AbstractContextManager[None]:
        return attributed(self.label_of(role, component), call)

    def label_of(self, role: str, component: object) -> str:
        return self._labels.get(id(component)) or describe(role, component)

    @property
    def uses_reference(self) -> bool:
        """Whether any term needs reference log-probs."""
        return self.reference is not None and "ref_logprobs" in self.needs

    def is_current(self, rollout: Rollout) -> bool:
        """Whether it was sampled from the policy as it is now, and not replayed."""
        return rollout.policy_version in (None, self.policy.version)

    # -- inside ---------------------------------------------------------------------------------

    def _publish(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        scored: ScoredRollouts,
        advantages: Mapping[int, float],
    ) -> None:
        """Show the rollouts of all ranks to the observers, which live on the main one; those that
        were replaced have advantage 0."""
        advantages_B = [advantages.get(row, 0.0) for row in range(len(rollouts))]
        everyone = self.policy.gather([(list(rollouts), scored, advantages_B)])
        if self.policy.is_main:
            self.lifecycle.rollouts_scored(
                RolloutsScored(
                    step=step,
                    rollouts_B=[r for rollouts, _, _ in everyone for r in rollouts],
                    scored=joined([scored for _, scored, _ in everyone]),
                    advantages_B=[a for *_, advantages_B in everyone for a in advantages_B],
                )
            )

    def _settings_as_config(self) -> dict[str, Any]:
        return {
            "model": self.policy.settings.model_dump(mode="json"),
            "optimizer": self.policy.optimizer_settings.model_dump(mode="json"),
            "train": self.settings.model_dump(mode="json"),
            "sampling": self.sampling.model_dump(mode="json"),
            "evaluation": self.evaluation and self.evaluation.model_dump(mode="json"),
        }
