"""The `mlflow` observer: an MLflow server, or a local store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grpo_core.secrets import without_secrets
from grpo_observers.config import MLflowConfig
from grpo_observers.tracker import Opened, Tracker

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Metrics, RunEnd
    from grpo_observers.samples import Table
    from grpo_observers.tracker import Opening

NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")
"""MLflow refuses a whole batch for one other character in the name of a metric or parameter."""
NOT_IN_PATHS = re.compile(r"[^\w\-. /]")
LONGEST_PARAMETER = 6000
PARAMETERS_PER_CALL = 100
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """A run in an experiment of MLflow; offline, in ``mlflow.db`` of the run folder."""

    Config = MLflowConfig
    library = extra = "mlflow"

    def __init__(
        self, config: MLflowConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._options = config or MLflowConfig()
        super().__init__(self._options, context)

    def backend(self) -> MLflowBackend:
        return MLflowBackend(self._options)


class MLflowBackend:
    """Speaks to MLflow by its client, which keeps no global run and asks for no git."""

    def __init__(self, options: MLflowConfig) -> None:
        self._options = options
        self._client: Any = None
        self._run_id = ""

    def open(self, opening: Opening) -> Opened:
        # The client knows these from the environment alone; its defaults, 120 s and 7 attempts,
        # would keep one record waiting for a quarter of an hour.
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(self._options.timeout / 3)))
        )
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = self._options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        local = f"sqlite:///{opening.run_dir / 'mlflow.db'}"
        if opening.offline or not uri:
            uri = local
        self._client = MlflowClient(tracking_uri=uri)
        # It may hold a password, and the state goes into every checkpoint.
        place = without_secrets(uri)
        before = opening.resumed
        if before is not None and before["uri"] == place:
            self._run_id = before["id"]
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._new_run(opening, local=uri == local)
            parameters = [Param(name, value) for name, value in flat(opening.facts)]
            for start in range(0, len(parameters), PARAMETERS_PER_CALL):
                batch = parameters[start : start + PARAMETERS_PER_CALL]
                self._client.log_batch(self._run_id, params=batch)
            self._client.log_dict(self._run_id, dict(opening.facts), "run.json")
        where = f"{uri}, run {self._run_id}"
        if uri == local:
            where = f"on this machine; to look: mlflow ui --backend-store-uri {uri}"
        return Opened(where=where, state={"id": self._run_id, "uri": place})

    def _new_run(self, opening: Opening, *, local: bool) -> str:
        options = self._options
        experiment = self._client.get_experiment_by_name(options.project)
        if experiment is None:
            place = (opening.run_dir / "mlartifacts").as_uri() if local else None
            identity = self._client.create_experiment(options.project, artifact_location=place)
        else:
            identity = experiment.experiment_id
        tags = dict.fromkeys(options.tags, "") | ({"group": options.group} if options.group else {})
        run = self._client.create_run(identity, run_name=opening.name, tags=tags)
        found: str = run.info.run_id
        return found

    def metrics(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(legal(name), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def table(self, step: int, table: Table) -> None:
        columns = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}
        # A colon would make an address of an artifact's path.
        folder = NOT_IN_PATHS.sub("_", table.name)
        self._client.log_table(self._run_id, columns, f"{folder}/step-{step:06d}.json")

    def close(self, end: RunEnd) -> None:
        self._client.set_tag(self._run_id, "steps_done", end.steps_done)
        self._client.set_terminated(self._run_id, status=STATUS[end.status])


def legal(name: str) -> str:
    """A name that MLflow takes."""
    return NOT_IN_NAMES.sub("_", name)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``{"train": {"steps": 3}}`` -> ``("train.steps", "3")``; long values are cut."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{path}.{index}")
    else:
        yield legal(path), str(value)[:LONGEST_PARAMETER]
