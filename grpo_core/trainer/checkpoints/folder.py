"""`checkpoints/` in the run folder: each checkpoint complete or absent, and known to be whole.

::

    checkpoints/step-000040/index.json          format, step, what it belongs to, checksums
                            state.json          everything but tensors
                            state.safetensors   the tensors
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpo_core.errors import CheckpointError, DamagedCheckpointError
from grpo_core.staging import staged_folder

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
INDEX, STATE, TENSORS = "index.json", "state.json", "state.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointFolder:
    """Writes, checks, reads and removes. One process writes; the run folder's lock sees to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are there, whole or damaged, in order."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def at(self, step: int) -> Path:
        return self.path / f"step-{step:06d}"

    def write(
        self, step: int, state: Any, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint; ``about`` goes into its index as it is.

        Raises:
            OSError: it cannot be written (a full disk, say); nothing of it is left.
        """
        target = self.at(step)
        with staged_folder(target) as staging:
            (staging / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            try:
                save_file(_apart(tensors), staging / TENSORS)
            except SafetensorError as error:
                raise OSError(str(error)) from error
            files = {name: _fingerprint(staging / name) for name in (STATE, TENSORS)}
            index = {"format": FORMAT, "step": step, "files": files, **about}
            index["checksum"] = _checksum(index)
            (staging / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        return target

    def index(self, step: int) -> dict[str, Any]:
        """What a checkpoint is, its files not looked at.

        Raises:
            DamagedCheckpointError: the index is missing or not what was written.
            CheckpointError: a newer version of the package wrote it.
        """
        path = self.at(step) / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            found, sound = index.pop("checksum"), index["step"] == step
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedCheckpointError(f"{path.name} cannot be read: {error}") from error
        if not sound or found != _checksum(index):
            raise DamagedCheckpointError(f"{path.name} is not what was written")
        if index["format"] != FORMAT:
            raise CheckpointError(
                f"{self.at(step)} has format {index['format']}, and this version of grpo_core "
                f"reads format {FORMAT}; resume with the version that wrote it"
            )
        return dict(index)

    def verify(self, step: int) -> dict[str, Any]:
        """The index of a checkpoint of which every byte is as it was written.

        Raises:
            DamagedCheckpointError: it is not; says which file.
            CheckpointError: a newer version of the package wrote it.
        """
        index = self.index(step)
        for name in (STATE, TENSORS):
            path, written = self.at(step) / name, index["files"][name]
            try:
                found = _fingerprint(path)
            except OSError as error:
                raise DamagedCheckpointError(f"{name} cannot be read: {error}") from error
            if found["bytes"] != written["bytes"]:
                raise DamagedCheckpointError(
                    f"{name} has {found['bytes']} bytes, not {written['bytes']}"
                )
            if found != written:
                raise DamagedCheckpointError(f"{name} is not what was written (SHA-256 differs)")
        return index

    def read(self, step: int) -> tuple[Any, dict[str, Tensor]]:
        """State and tensors of a checkpoint that was verified; tensors on the CPU."""
        state = json.loads((self.at(step) / STATE).read_text(encoding="utf-8"))
        # Copied: what was loaded may still be the file itself, and whoever changes it the file.
        return state, {n: t.clone() for n, t in load_file(self.at(step) / TENSORS).items()}

    def set_aside(self, step: int) -> None:
        """Take a checkpoint out of the way; it is deleted when the next one is complete."""
        aside = self.at(step).with_name(f".{self.at(step).name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        self.at(step).rename(aside)

    def prune(self, keep: set[int]) -> None:
        """Delete all checkpoints but those of some steps, and what was set aside or half written.

        A folder that cannot be deleted is warned of: it costs space, not the run.
        """
        for step in self.steps():
            if step not in keep:
                # Renamed first: a kill in the middle must not leave half of one under its name.
                self.set_aside(step)
        for entry in self.path.glob(".step-*"):
            shutil.rmtree(entry, onerror=_warn)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each on the CPU with storage of its own: safetensors refuses what shares memory."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        address = tensor.untyped_storage().data_ptr()
        partial = tensor.untyped_storage().nbytes() != tensor.nbytes
        if partial or (tensor.numel() and address in seen):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(address)
        found[name] = tensor
    return found


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _checksum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _warn(function: Any, path: str, failure: Any) -> None:
    logger.warning("%s could not be deleted: %s", path, failure[1])
