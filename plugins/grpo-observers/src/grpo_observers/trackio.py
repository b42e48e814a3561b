"""The `trackio` observer: Trackio on this machine, in a Hugging Face Space or on a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from grpo_observers.config import TrackioConfig
from grpo_observers.tracker import Opened, Tracker

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import Metrics, RunEnd
    from grpo_observers.samples import Table
    from grpo_observers.tracker import Opening


class Trackio(Tracker):
    """A run in Trackio's store on this machine (``TRACKIO_DIR``), in a Space or on a server.

    What a Space or server does not take, Trackio itself keeps on this machine and sends later.
    """

    Config = TrackioConfig
    library = extra = "trackio"

    def __init__(
        self, config: TrackioConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._options = config or TrackioConfig()
        super().__init__(self._options, context)

    def backend(self) -> TrackioBackend:
        return TrackioBackend(self._options)


class TrackioBackend:
    """Speaks to Trackio."""

    def __init__(self, options: TrackioConfig) -> None:
        self._options = options
        self._run: Any = None

    def open(self, opening: Opening) -> Opened:
        import trackio

        options = self._options
        place = {"space_id": options.space, "server_url": options.server}
        # Runs are found again by their names.
        name = opening.resumed["name"] if opening.resumed else opening.name
        with without(*REMOTE if opening.offline else ()):
            self._run = trackio.init(
                project=options.project,
                name=name,
                group=options.group,
                config={**opening.facts, "tags": list(options.tags)},
                resume="allow" if opening.resumed else "never",
                private=options.private,
                embed=False,
                **({} if opening.offline else place),
            )
        remote = None if opening.offline else options.space or options.server
        where = remote or f"on this machine; to look: trackio show --project {options.project}"
        return Opened(where=where, state={"name": self._run.name, "id": self._run.id})

    def metrics(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def table(self, step: int, table: Table) -> None:
        import trackio

        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        self._run.log({table.name: trackio.Table(data=rows)}, step=step)

    def close(self, end: RunEnd) -> None:
        # Trackio knows no status of a run.
        self._run.log(
            {"run/finished": float(end.status == "finished"), "run/steps_done": end.steps_done},
            step=end.steps_done,
        )
        self._run.finish()


REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables that send a run elsewhere, whatever the call says."""


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Environment variables put away for a moment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
