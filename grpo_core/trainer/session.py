"""Everything around the steps: run folder, lock, signals, evaluation, checkpoints, saving, events.

Whatever ends a run (its last step, Ctrl-C, SIGTERM, an exception), what it has learned is saved,
every observer hears of it, and the generator is closed.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from grpo_core.attribution import attributed
from grpo_core.trainer.checkpoints import Checkpoints
from grpo_core.trainer.checks import check, notices
from grpo_core.trainer.evaluation import evaluate, evaluate_saved
from grpo_core.trainer.folder import claim_folder, remove_description, write_description
from grpo_core.trainer.health import Health
from grpo_core.trainer.prompts import check_lengths
from grpo_core.trainer.saving import Saving
from grpo_core.types import EvalResult, RunEnd, RunStart, StepEnd

if TYPE_CHECKING:
    from grpo_core.settings import CheckpointSettings
    from grpo_core.trainer.run import Run
    from grpo_core.types import Evaluated

logger = logging.getLogger(__name__)

Status = Literal["running", "finished", "interrupted", "failed"]


class Session:
    """The state of a run that is not a role."""

    def __init__(self, run: Run, checkpoints: CheckpointSettings | None) -> None:
        self._run = run
        self._health = Health()
        self.checkpoints = Checkpoints(run, self, checkpoints)
        self._saving = Saving(run, self)
        self.status: Status = "running"
        self.stop_requested = False
        self.steps_done = 0
        self._tokens = 0.0
        self.history: list[Mapping[str, float]] = []
        self.evaluations: list[Mapping[str, float]] = []
        self.results: list[EvalResult] = []
        self.artifacts: dict[str, Path] = {}

    @contextmanager
    def opened(self, resume: str | None, *, accept_changes: bool) -> Iterator[None]:
        """Start or resume, hand over to the loop, and end whatever happens."""
        run = self._run
        error: BaseException | None = None
        with ExitStack() as stack:
            # Called last: a generator that is closed ends what it does in other threads.
            stack.callback(run.ahead.end)
            stack.callback(run.generator.close)
            stack.callback(run.scorer.close)
            self._start(stack, resume, accept_changes=accept_changes)
            try:
                if not self.steps_done:
                    self._evaluate()
                with self._signals():
                    yield
                    self.status = "interrupted" if self.stop_requested else "finished"
            except BaseException as caught:
                self.status = "interrupted" if isinstance(caught, KeyboardInterrupt) else "failed"
                error = caught
                raise
            finally:
                self._end(error)

    def step_done(self, step: int) -> None:
        """Reduce and publish the metrics of a step."""
        run = self._run
        metrics = finished_metrics(run.metrics.reduced(run.policy.gather))
        self.steps_done = step + 1
        self._tokens += metrics["tokens/sampled"] + metrics["tokens/prompt"]
        metrics["tokens/total"] = self._tokens
        self.history.append(metrics)
        seen = self._health.look(metrics)
        if not run.observers:
            for notice in seen:
                logger.warning("step %d: %s", step, notice.text)
        if run.policy.is_main:
            run.lifecycle.step_end(
                StepEnd(
                    step=step,
                    steps=run.settings.steps,
                    policy_version=run.policy.version,
                    metrics=metrics,
                    notices=seen,
                )
            )
        # Before the checkpoint, which must know that it has been.
        if self._evaluation_is_due(last=self.steps_done == run.settings.steps):
            self._evaluate()
        if self.checkpoints.step_done():
            self._saving.save("checkpoint")

    def latest_metrics(self) -> Mapping[str, float]:
        """Of the last step, and of the evaluation after it if there was one."""
        found = dict(self.history[-1]) if self.history else {}
        if self.evaluations and self.evaluations[-1]["step"] == self.steps_done:
            found.update(self.evaluations[-1])
        return found

    def state_dict(self) -> dict[str, Any]:
        """How far the run is, and what it has measured."""
        return {
            "steps_done": self.steps_done,
            "tokens": self._tokens,
            "history": self.history,
            "evaluations": self.evaluations,
            "results": [dict(result.plain()) for result in self.results],
            "streaks": self._health.streaks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.steps_done = state["steps_done"]
        self._tokens = state["tokens"]
        self.history = state["history"]
        self.evaluations = state["evaluations"]
        self.results = [EvalResult(**result) for result in state["results"]]
        # A condition that a newer version watches starts at 0.
        self._health.streaks.update(state["streaks"])

    def _start(self, stack: ExitStack, resume: str | None, *, accept_changes: bool) -> None:
        run = self._run
        settings = run.settings
        updates = settings.minibatches_per_step * settings.passes_per_step
        if run.policy.is_main:
            stack.enter_context(claim_folder(run.output, resuming=resume is not None))
        run.policy.prepare(
            optimizer_steps=settings.steps * updates,
            temperature=run.sampling.temperature or 1.0,
            tokens_per_microbatch=settings.tokens_per_microbatch,
            needs=run.needs,
        )
        if run.reference is not None and run.uses_reference:
            with attributed(run.label("reference"), "start"):
                run.reference.start(run.policy)
        check(run)
        prompts = run.task.train_prompts()
        drawn: Sequence[int] = range(len(prompts))
        if settings.dynamic_sampling is None:
            drawn = run.prompts.drawn(settings.steps)
        check_lengths(run.policy, prompts, drawn, max_tokens=run.sampling.max_tokens)
        run.scorer.start()
        self.checkpoints.begin()
        if resume is not None:
            self.checkpoints.resume(resume, accept_changes=accept_changes)
        derived = self._derived(len(prompts), updates)
        seen = notices(run)
        if run.policy.is_main:
            if not run.observers:
                for notice in seen:
                    logger.warning("%s", notice.text)
            write_description(run.output, run.config, run.manifest)
            run.lifecycle.run_start(
                RunStart(
                    run_dir=run.output,
                    steps=settings.steps,
                    first_step=self.steps_done,
                    config=run.config,
                    derived=derived,
                    notices=seen,
                )
            )

    def _derived(self, prompts: int, updates: int) -> dict[str, Any]:
        run, settings = self._run, self._run.settings
        trainable = sum(p.numel() for p in run.policy.model.parameters() if p.requires_grad)
        rollouts = settings.prompts_per_step * settings.group_size
        return {
            "trainable_parameters": trainable,
            "rollouts_per_step": rollouts,
            "rollouts_per_optimizer_step": rollouts // settings.minibatches_per_step,
            "optimizer_steps": settings.steps * updates,
            "training_prompts": prompts,
            "epochs": settings.steps * settings.prompts_per_step / prompts,
            "processes": run.policy.ranks,
            **run.policy.choices,
        }

    def _evaluation_is_due(self, *, last: bool) -> bool:
        settings = self._run.evaluation
        if settings is None or any(e["step"] == self.steps_done for e in self.evaluations):
            return False
        return last or bool(settings.every and self.steps_done % settings.every == 0)

    def _evaluate(self) -> None:
        events = evaluate(self._run, self.steps_done)
        if events:
            merged = {k: v for event in events for k, v in event.metrics.items()}
            self.evaluations.append({"step": float(self.steps_done), **merged})
        self._publish(events)

    def _publish(self, events: Sequence[Evaluated]) -> None:
        run = self._run
        self.results = [result for event in events for result in event.results]
        if run.policy.is_main:
            for event in events:
                run.lifecycle.evaluated(event)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the current step; a second one ends it at once.

        Only the main thread may set handlers; elsewhere (some notebooks) they stay as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(number: int, frame: FrameType | None) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            logger.warning(
                "%s: finishing step %d, then saving; once more to stop at once",
                signal.Signals(number).name,
                self.steps_done,
            )

        previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def _end(self, error: BaseException | None) -> None:
        """Save, then tell; a failure while saving must not hide the first one."""
        run = self._run
        try:
            try:
                self.checkpoints.run_ends(error)
            finally:
                # Before the first step there is nothing that the starting model does not hold.
                if self.steps_done or error is None:
                    self._saving.save("final")
                    if error is None:
                        self._evaluate_saved()
        except Exception as failure:
            if error is None:
                self.status, error = "failed", failure
                raise
            error.add_note(f"saving what had been learned failed too: {failure}")
        finally:
            if run.policy.is_main and error is not None and not self.steps_done:
                # The same command must work once its cause is mended.
                remove_description(run.output)
            if run.policy.is_main:
                run.lifecycle.run_end(
                    RunEnd(
                        run_dir=run.output,
                        status=self.status if self.status != "running" else "failed",
                        steps_done=self.steps_done,
                        metrics=self.history[-1] if self.history else {},
                        artifacts=dict(self.artifacts),
                        error=None if error is None else f"{type(error).__name__}: {error}",
                    )
                )

    def _evaluate_saved(self) -> None:
        run = self._run
        if run.evaluation is None or not run.evaluation.after_saving:
            return
        # Savers answer on the main rank alone.
        paths = run.policy.gather([str(p) for p in self.artifacts.values() if is_model(p)])
        if not paths:
            logger.warning(
                "evaluation.after_saving: no saver has written a model that could be read back"
            )
            return
        events = evaluate_saved(run, Path(paths[0]), self.steps_done)
        for event in events:
            self.evaluations[-1] = {**self.evaluations[-1], **event.metrics}
        self._publish(events)


def finished_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that follow from others: standard deviations, throughput, time of the update."""
    done = dict(metrics)
    for name in [n for n in done if n.endswith("/square")]:
        base = name.removesuffix("/square")
        variance = max(0.0, done.pop(name) - done[f"{base}/mean"] ** 2)
        done[f"{base}/std"] = variance**0.5
    # `time/reward/<provider>` is part of other times, and of calls that ran side by side.
    phases = sum(
        v
        for n, v in done.items()
        if n.startswith("time/") and n.count("/") == 1 and n != "time/step"
    )
    done["time/update"] = done["time/step"] - phases
    done["time/tokens_per_second"] = done["tokens/sampled"] / done["time/step"]
    return done


def is_model(path: Path) -> bool:
    """Whether ``from_pretrained`` could read this folder."""
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
