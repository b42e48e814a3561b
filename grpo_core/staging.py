"""Folders and files that are complete or absent, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when the block ends without an exception.

    It lies beside ``target``, so that the rename stays on one file system, under a fixed name, so
    that what a killed process left there is cleared away; a run folder has one writer.

    Args:
        durable: also if the machine loses its power; waits for the disk. Without it, for what
            another process reads now and nobody later.
    """
    staging, old = _beside(target, "tmp"), _beside(target, "old")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    if old.exists() and not target.exists():
        old.rename(target)  # the process was killed between the two renames below
    try:
        yield staging
        if durable:
            for path in sorted(staging.rglob("*")):
                _sync(path)
            _sync(staging)
        _replace_folder(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if durable:
        _sync(target.parent)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when the block ends without an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(target, "tmp")
    try:
        yield staging
        _sync(staging)
        staging.replace(target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def clear_staged(folder: Path) -> None:
    """Remove the files in ``folder`` that a killed process had begun to write; whoever calls this
    is its only writer. They may be of names that will not be written again."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink()


def _beside(target: Path, kind: str) -> Path:
    # A leading dot hides it from readers that take every file of a folder.
    return target.with_name(f".{target.name}.{kind}")


def _replace_folder(staging: Path, target: Path) -> None:
    """Rename over what may be there: a folder that is not empty cannot be renamed over."""
    old = _beside(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    # Without it a power cut after the rename can leave a complete-looking name without its data.
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
