"""The `tensorboard` observer: event files, written without torch and without TensorFlow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from grpo_core.types import Evaluated, Metrics, RunEnd, RunStart, StepEnd

FOLDER = "tensorboard"


class TensorBoard:
    """Every metric as a scalar, in ``tensorboard/`` of the run folder.

    The x axis counts steps done, for steps and evaluations alike: the first step is at 1, the
    evaluation before it at 0.
    """

    def __init__(self) -> None:
        """Raises ``ConfigError`` when the package ``tensorboard`` is not installed."""
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401
        except ModuleNotFoundError as error:
            missing = (error.name or "tensorboard").partition(".")[0]
            raise ConfigError(
                f"observer 'tensorboard' needs the package {missing!r}: "
                "pip install grpo-core[tensorboard]"
            ) from error
        self._writer: Any = None

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(event.run_dir / FOLDER))
        # A resumed run writes a second file; this makes the reader drop what the first one says
        # of the steps that come again.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event.first_step + 1 if event.first_step else 0, session_log=start)

    @hookimpl
    def grpo_evaluated(self, event: Evaluated) -> None:
        self._scalars(event.step, event.metrics)

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        self._scalars(event.step + 1, event.metrics)

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, steps_done: int, metrics: Metrics) -> None:
        from tensorboard.compat.proto import summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
        ]
        self._add(steps_done, summary=summary_pb2.Summary(value=values))
        self._writer.flush()

    def _add(self, steps_done: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=steps_done, **content))
