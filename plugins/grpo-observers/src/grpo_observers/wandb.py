"""The `wandb` observer: Weights & Biases."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from grpo_observers.config import WandbConfig
from grpo_observers.tracker import Opened, Tracker

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Metrics, RunEnd
    from grpo_observers.samples import Table
    from grpo_observers.tracker import Opening


class Wandb(Tracker):
    """A run on Weights & Biases, or in ``wandb/`` of the run folder when offline."""

    Config = WandbConfig
    library = extra = "wandb"

    def __init__(
        self, config: WandbConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._options = config or WandbConfig()
        super().__init__(self._options, context)

    def backend(self) -> WandbBackend:
        return WandbBackend(self._options)


class WandbBackend:
    """Speaks to W&B."""

    def __init__(self, options: WandbConfig) -> None:
        self._options = options
        self._run: Any = None

    def open(self, opening: Opening) -> Opened:
        import wandb

        options = self._options
        if opening.offline and options.mode == "online":
            # The attempt that failed a moment ago still holds the run's id.
            wandb.teardown()
        # Never ask on a terminal: nobody may sit there.
        if not opening.offline and not wandb.login(host=options.base_url, prompt=False):
            raise RuntimeError("there is no API key (`wandb login`, or WANDB_API_KEY)")
        run_id = opening.resumed["id"] if opening.resumed else uuid.uuid4().hex[:12]
        settings: dict[str, Any] = {
            "mode": "offline" if opening.offline else "online",
            "root_dir": str(opening.run_dir),
            "init_timeout": options.timeout * 0.8,
            "finish_timeout": options.timeout,
            "silent": True,
            # Output, arguments, packages, source and host name are nobody's business here, and
            # arguments may hold tokens.
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "host": "",
            "x_disable_meta": True,
            "x_save_requirements": False,
        }
        if options.base_url:
            settings["base_url"] = options.base_url
        self._run = wandb.init(
            entity=options.entity,
            project=options.project,
            group=options.group,
            tags=list(options.tags),
            name=opening.name,
            id=run_id,
            resume="allow",
            config=dict(opening.facts),
            settings=wandb.Settings(**settings),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        folder = opening.run_dir / "wandb"
        where = f"offline; to upload: wandb sync {folder}/offline-run-*-{run_id}*"
        return Opened(where=where if opening.offline else self._run.url, state={"id": run_id})

    def metrics(self, step: int, metrics: Metrics) -> None:
        # `step` is a column, not W&B's own counter: that one would drop what a resumed run sends
        # of the steps that come again.
        self._run.log({"step": step, **metrics})

    def table(self, step: int, table: Table) -> None:
        import wandb

        data = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        self._run.log({"step": step, table.name: data})

    def close(self, end: RunEnd) -> None:
        self._run.summary["status"] = end.status
        self._run.summary["steps_done"] = end.steps_done
        self._run.finish(exit_code={"finished": 0, "interrupted": 130}.get(end.status, 1))
