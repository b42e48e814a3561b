"""The run folder: claimed by one run, described before the first step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_core.errors import ConfigError, RunExistsError
from grpo_core.staging import clear_staged, staged_file
from grpo_core.yaml12 import dump

LOCK = ".lock"
CONFIG = "config.yaml"
COMPONENTS = "components.json"


@contextmanager
def claim_folder(folder: Path, *, resuming: bool = False) -> Iterator[None]:
    """Make the folder and hold it until the block ends; ``resuming`` goes on in one that is used.

    Raises:
        RunExistsError: it holds a run already, or another process is using it.
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output folder {str(folder)!r} cannot be written: {error}") from error
    with lock:
        _lock(lock.fileno(), folder)
        if not resuming:
            require_free(folder)
        clear_staged(folder)
        # The file stays: removed, it could be locked by one process and made anew by another.
        yield


def require_free(folder: Path) -> None:
    """Raises ``RunExistsError`` when the folder holds a run, which must not be overwritten."""
    if (folder / CONFIG).exists():
        raise RunExistsError(
            f"output folder {str(folder)!r} already holds a run; go on with it by --resume, choose "
            "another with --output, or move the old one away"
        )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the check for an existing run is all there is.
        return
    try:
        # The kernel drops it however the process ends, so a killed run never blocks the next.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunExistsError(
            f"output folder {str(folder)!r} is in use by another run; choose another with --output"
        ) from error


def write_description(
    folder: Path, config: Mapping[str, Any], manifest: Sequence[Mapping[str, Any]]
) -> None:
    """Write what this run is: its resolved config and the components in use."""
    write_text(folder / CONFIG, dump(dict(config)))
    write_text(folder / COMPONENTS, json.dumps(list(manifest), indent=2, default=str) + "\n")


def remove_description(folder: Path) -> None:
    """Give the folder free again: nothing was done in it that could be lost."""
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / COMPONENTS).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or absent, whenever the process is killed."""
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")
