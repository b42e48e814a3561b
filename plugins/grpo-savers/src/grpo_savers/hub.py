"""The saver that publishes: what the other savers of a run wrote, on the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_core import hookimpl
from grpo_core.errors import ConfigError, GRPOError
from grpo_savers.config import HubConfig
from grpo_savers.dataset_card import dataset_card, is_whole
from grpo_savers.outbox import (
    MODEL_FILES,
    OUTBOX,
    ROLLOUT_FILES,
    Destination,
    chosen,
    pending,
    published,
    put,
)

if TYPE_CHECKING:
    from typing import Literal

    from grpo_core.protocols import BuildContext
    from grpo_core.types import CheckpointSaved, RunEnd, RunStart, SaveRequest

logger = logging.getLogger(__name__)

POLL = 0.2


class HubSaver:
    """Publishes ``final/`` at the end and, if asked, the models of checkpoints, each on a branch of
    its own, and the rollouts as a data set.

    A process beside the training uploads. Neither it, nor the network, nor the Hub can hold the
    training up or stop it; what could not be published waits in ``outbox/`` for ``grpo push``.
    """

    Config = HubConfig

    def __init__(self, config: HubConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self._run_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._told = 0
        self._checkpoints_without_model = 0
        self._final: list[Path] = []

    def save(self, request: SaveRequest) -> Path | None:
        """Nothing: other savers write, and what they wrote is published."""
        return None

    def push(self, run_dir: Path) -> Sequence[str]:
        """Publish what waits in a run's outbox, and its ``final/``, now and in this process; what
        the Hub has already is not sent again.

        Returns:
            The addresses.

        Raises:
            ConfigError: there is nothing to publish.
            GRPOError: it did not work; says why.
        """
        from grpo_savers.upload import UploadError, empty

        if (run_dir / "final").is_dir():
            self._put_model(run_dir, run_dir / "final", None)
            self._put_rollouts(run_dir)
        if not pending(run_dir):
            raise ConfigError(f"{run_dir} holds neither final/ nor anything in {OUTBOX}/")
        try:
            return empty(run_dir)
        except UploadError as error:
            raise GRPOError(f"not published: {error}") from error

    # -- the run, seen from the main rank -------------------------------------------------------

    @hookimpl
    def grpo_run_start(self, event: RunStart) -> None:
        self._run_dir = event.run_dir
        with _harmless("the start of the run"):
            self._told = len(published(event.run_dir))
            self._upload()  # what a killed run left

    @hookimpl
    def grpo_checkpoint_saved(self, event: CheckpointSaved) -> None:
        with _harmless("a checkpoint"):
            self._checkpoint_saved(event)

    @hookimpl
    def grpo_run_end(self, event: RunEnd) -> None:
        with _harmless("the end of the run"):
            self._run_end(event)

    def _checkpoint_saved(self, event: CheckpointSaved) -> None:
        run_dir = self._folder()
        if event.kind == "final":
            # Only once the run has not failed.
            self._final.append(event.path)
            return
        if not self._config.at_checkpoints:
            return
        if event.kind == "checkpoint":
            self._checkpoints_without_model += 1
            if self._checkpoints_without_model == 2:
                logger.warning(
                    "saver hub: at_checkpoints is set, but no saver writes models at checkpoints, "
                    "so that there is nothing to publish; set at_checkpoints of the saver "
                    "safetensors too"
                )
            return
        self._checkpoints_without_model = 0
        self._put_model(run_dir, event.path, f"step-{event.step:06d}")
        self._put_rollouts(run_dir)
        self._upload()

    def _run_end(self, event: RunEnd) -> None:
        if event.status == "failed":
            if self._final:
                logger.warning(
                    "saver hub: the run failed, so final/ is not published; to do it all the same: "
                    "grpo push %s",
                    event.run_dir,
                )
        else:
            for path in self._final:
                self._put_model(event.run_dir, path, None)
            self._put_rollouts(event.run_dir)
        self._finish(event.run_dir)

    # -- the outbox -----------------------------------------------------------------------------

    def _folder(self) -> Path:
        if self._run_dir is None:
            raise RuntimeError("a checkpoint was saved before grpo_run_start named the run folder")
        return self._run_dir

    def _put_model(self, run_dir: Path, folder: Path, revision: str | None) -> None:
        files = chosen(folder, MODEL_FILES)
        texts = {}
        for where, path in list(files.items()):
            if path.name == "adapter_config.json":
                texts[where] = _without_local_path(path)
                del files[where]
        self._put(run_dir, revision or "final", files, texts, "model", revision)

    def _put_rollouts(self, run_dir: Path) -> None:
        if self._config.rollouts_repo is None:
            return
        found = chosen(run_dir / "rollouts", ROLLOUT_FILES)
        files = {f"data/{where}": path for where, path in found.items() if is_whole(path)}
        if not files:
            return
        texts = {"README.md": dataset_card(next(iter(files.values())), model=self._config.repo)}
        self._put(run_dir, "rollouts", files, texts, "dataset", None)

    def _put(
        self,
        run_dir: Path,
        name: str,
        files: dict[str, Path],
        texts: dict[str, str],
        kind: Literal["model", "dataset"],
        revision: str | None,
    ) -> None:
        repo = self._config.repo if kind == "model" else self._config.rollouts_repo
        assert repo is not None
        to = Destination(
            repo=repo,
            kind=kind,
            private=self._config.private,
            revision=revision,
            endpoint=self._config.endpoint,
            message=f"{'Model' if kind == 'model' else 'Rollouts'}, {name}",
        )
        try:
            put(run_dir, name, files, texts, to)
        except OSError as error:
            logger.warning("saver hub: %s cannot be published: %s", name, error)

    def _upload(self) -> None:
        """See that a process is at it if anything waits, and tell what the last one did."""
        run_dir = self._folder()
        if self._process is not None and self._process.poll() is None:
            return
        self._tell(run_dir)
        if not pending(run_dir):
            return
        try:
            with (run_dir / OUTBOX / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "grpo_savers.upload", str(run_dir.resolve())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                    # Ctrl-C is for the training, which then waits for the upload.
                    start_new_session=True,
                )
        except OSError as error:
            logger.warning("saver hub: uploads cannot be started: %s", error)

    def _tell(self, run_dir: Path) -> None:
        for line in published(run_dir)[self._told :]:
            self._told += 1
            logger.info("published: %s", line["url"])
            print(f"published: {line['url']}", flush=True)
        if self._process is not None and self._process.returncode:
            logger.warning("saver hub: not published yet: %s", _last_line(run_dir))
        self._process = None

    def _finish(self, run_dir: Path) -> None:
        """Wait for the uploads, but not for ever."""
        deadline = time.monotonic() + 60 * self._config.wait_minutes
        self._run_dir = run_dir
        try:
            while True:
                running = self._process
                while running is not None and running.poll() is None:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(POLL)
                failed = running is not None and bool(running.returncode)
                if time.monotonic() >= deadline or failed or not pending(run_dir):
                    break
                self._upload()
                if self._process is None:
                    break
        finally:
            late = self._process is not None and self._process.poll() is None
            if late and self._process is not None:
                self._process.terminate()
                self._process.wait()
        if late:
            logger.warning(
                "saver hub: the uploads took longer than wait_minutes (%g) and were stopped",
                self._config.wait_minutes,
            )
            self._process = None
        self._tell(run_dir)
        waiting = ", ".join(job.path.name for job in pending(run_dir))
        if waiting:
            logger.warning(
                "saver hub: NOT PUBLISHED: %s. Nothing is lost: it waits in %s, and this publishes "
                "it: grpo push %s",
                waiting,
                run_dir / OUTBOX,
                run_dir,
            )


@contextmanager
def _harmless(when: str) -> Iterator[None]:
    """Publishing must not end a training, whatever goes wrong with it."""
    try:
        yield
    except Exception:
        logger.exception("saver hub failed at %s; the run goes on", when)


def _without_local_path(path: Path) -> str:
    """An adapter's config without the folders of this machine, which are nobody's business."""
    values = json.loads(path.read_text(encoding="utf-8"))
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and os.path.isabs(base):
        values["base_model_name_or_path"] = Path(base).name
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _last_line(run_dir: Path) -> str:
    try:
        lines = (run_dir / OUTBOX / "log.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "no log"
