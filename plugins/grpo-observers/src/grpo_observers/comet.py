"""The `comet` observer: Comet."""

from __future__ import annotations

import csv
import io
import os
import uuid
from typing import TYPE_CHECKING, Any

from grpo_observers.config import CometConfig
from grpo_observers.tracker import Opened, Tracker

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Metrics, RunEnd
    from grpo_observers.samples import Table
    from grpo_observers.tracker import Opening


class Comet(Tracker):
    """An experiment on Comet, or an archive in ``comet/`` of the run folder when offline."""

    Config = CometConfig
    library = "comet_ml"
    extra = "comet"

    def __init__(
        self, config: CometConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._options = config or CometConfig()
        super().__init__(self._options, context)

    def backend(self) -> CometBackend:
        return CometBackend(self._options)


class CometBackend:
    """Speaks to Comet."""

    def __init__(self, options: CometConfig) -> None:
        self._options = options
        self._experiment: Any = None

    def open(self, opening: Opening) -> Opened:
        options = self._options
        # Comet waits for uploads up to four hours at the end, and is told otherwise only here.
        for name in ("CLEANING", "UPLOAD"):
            os.environ.setdefault(f"COMET_TIMEOUT_{name}", str(max(1, int(options.timeout))))
        import comet_ml

        if not opening.offline and not comet_ml.get_config("comet.api_key"):
            raise RuntimeError("there is no API key (`comet login`, or COMET_API_KEY)")
        key = opening.resumed["id"] if opening.resumed else uuid.uuid4().hex
        folder = opening.run_dir / "comet"
        folder.mkdir(exist_ok=True)
        # Source, arguments, output and the machine are nobody's business here, and arguments may
        # hold tokens.
        silent: tuple[str, ...]
        silent = ("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch")
        silent += ("log_env_details", "log_env_host", "auto_output_logging", "auto_param_logging")
        silent += ("auto_metric_logging", "auto_log_co2")
        settings: dict[str, Any] = dict.fromkeys(silent, False)
        self._experiment = comet_ml.start(
            workspace=options.workspace,
            project_name=options.project,
            experiment_key=key,
            mode="get_or_create",
            online=not opening.offline,
            experiment_config=comet_ml.ExperimentConfig(
                name=opening.name,
                tags=list(options.tags),
                offline_directory=str(folder),
                display_summary_level=0,
                **settings,
            ),
        )
        if not self._experiment.alive:
            raise RuntimeError("Comet did not start the experiment; its own message is above")
        if not opening.resumed:
            self._experiment.log_parameters(dict(opening.facts))
        where = f"offline; to upload: comet upload {folder}/{key}*.zip"
        return Opened(where=where if opening.offline else self._experiment.url, state={"id": key})

    def metrics(self, step: int, metrics: Metrics) -> None:
        self._experiment.log_metrics(dict(metrics), step=step)

    def table(self, step: int, table: Table) -> None:
        # Not log_table, which needs pandas for a list that is not of equal types.
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(table.columns)
        writer.writerows(table.rows)
        name = f"{table.name}/step-{step:06d}.csv"
        self._experiment.log_asset_data(out.getvalue(), name=name, step=step, overwrite=True)

    def close(self, end: RunEnd) -> None:
        self._experiment.log_other("status", end.status)
        self._experiment.log_other("steps_done", end.steps_done)
        self._experiment.end()
