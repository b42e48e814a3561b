"""The saver of rollouts: one Parquet file per step, for people, debugging and later training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from grpo_core import hookimpl
from grpo_core.staging import staged_file
from grpo_savers.config import RolloutsConfig
from grpo_savers.rollout_table import logged_names, rollout_table

if TYPE_CHECKING:
    from pathlib import Path

    from grpo_core.protocols import BuildContext
    from grpo_core.types import RolloutsScored, RunStart, SaveRequest


class RolloutsSaver:
    """Writes ``rollouts/step-000012.parquet`` as soon as a step's rollouts are scored, so that
    they are there when the update fails.

    See ``grpo_savers.rollout_table`` for the columns. Each file is complete or absent.
    """

    Config = RolloutsConfig

    def __init__(
        self, config: RolloutsConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or RolloutsConfig()
        self._folder: Path | None = None
        self._logged: list[str] = []

    def save(self, request: SaveRequest) -> Path | None:
        """Nothing: the rollouts are written as they come."""
        return None

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        self._folder = event.run_dir / "rollouts"
        # Steps after the checkpoint that a resumed run goes on from come again.
        for path in self._folder.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) >= event.first_step:
                path.unlink()

    @hookimpl
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        if event.step % self._config.every:
            return
        if self._folder is None:
            raise RuntimeError("rollouts were scored before grpo_run_start named the run folder")
        # Readers of a folder take the columns of its files to be the same.
        self._logged = logged_names(event.scored, self._logged)
        with staged_file(self._folder / f"step-{event.step:06d}.parquet") as path:
            pq.write_table(rollout_table(event, self._logged), path, compression="zstd")
