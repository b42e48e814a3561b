"""What every saver must satisfy, as tests to inherit."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
import torch

from grpo_core.testing.reference_suite import make_policy, move, trained, untouched
from grpo_core.types import SaveRequest

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.policy import Policy
    from grpo_core.protocols import Saver

DEATHS = 6
"""Moments at which a saving process is killed, spread over what it writes."""
CALLS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"})


class SaverSuite(ABC):
    """Inherit in a test module and say how to make the saver, and how to read what it wrote::

        class TestMine(SaverSuite):
            def make(self):
                return MySaver()

            def restore(self, path):
                return load_file(path / "model.safetensors")

    One test saves in a forked process and kills it (POSIX only).
    """

    kinds: tuple[Literal["checkpoint", "final"], ...] = ("final",)
    """When the saver writes."""
    lora: bool = False
    exact: bool = True
    """Whether ``restore`` gives the trained weights themselves, by the policy's names for them."""

    @abstractmethod
    def make(self) -> Saver:
        """A new saver."""

    @abstractmethod
    def restore(self, path: Path) -> dict[str, Tensor]:
        """The weights that were written, by the policy's parameter names; other things that were
        written may be among them."""

    def test_what_is_restored_is_what_was_saved(self, tmp_path: Path) -> None:
        policy = self._moved()
        for kind in self.kinds:
            path = self._save(policy, tmp_path, kind)
            assert path is not None, f"nothing was written for {kind!r}"
            assert path.is_relative_to(tmp_path), f"{path} is not in the run folder"
            if not self.exact:
                continue
            restored = self.restore(path)
            for name, parameter in trained(policy).items():
                assert name in restored, f"{name} is not among {sorted(restored)[:3]} ..."
                assert torch.equal(restored[name], parameter.detach()), name

    def test_the_policy_is_left_as_it_was(self, tmp_path: Path) -> None:
        policy = self._moved()
        model: Any = policy.model
        for kind in self.kinds:
            config = model.config.to_dict()
            with untouched(policy):
                self._save(policy, tmp_path, kind)
            assert model.config.to_dict() == config, "the saver changed the model's config"

    def test_saving_again_writes_the_same(self, tmp_path: Path) -> None:
        policy = self._moved()
        for kind in self.kinds:
            path = self._save(policy, tmp_path, kind)
            before = contents(tmp_path)
            assert self._save(policy, tmp_path, kind) == path
            assert contents(tmp_path) == before

    def test_a_newer_one_replaces_the_old_one_whole(self, tmp_path: Path) -> None:
        policy = self._moved()
        kind = self.kinds[-1]
        self._save(policy, tmp_path, kind)
        move(policy, seed=2)
        path = self._save(policy, tmp_path, kind)
        assert path is not None
        again = self._save(policy, tmp_path / "other", kind)
        assert again is not None
        assert contents(path) == contents(again)

    def test_other_ranks_write_nothing(self, tmp_path: Path) -> None:
        policy = self._moved()
        for kind in self.kinds:
            assert self._save(cast("Policy", _OtherRank(policy)), tmp_path, kind) is None
        assert contents(tmp_path) == {}

    def test_a_full_disk_leaves_what_was_there(self, tmp_path: Path) -> None:
        """A limit on the size of files stands for the disk: the kernel refuses the write."""
        policy = self._moved()
        kind = self.kinds[-1]
        path = self._save(policy, tmp_path, kind)
        assert path is not None
        before = contents(tmp_path)
        move(policy, seed=2)
        largest = max(file.stat().st_size for file in path.rglob("*") if file.is_file())
        with file_size_limit(largest // 2), pytest.raises(Exception):  # noqa: B017, PT011
            self._save(policy, tmp_path, kind)
        assert contents(tmp_path) == before

    def test_a_kill_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """A process that saves is killed before it opens, renames or removes its n-th file."""
        policy, kind = self._moved(), self.kinds[-1]
        path = self._save(policy, tmp_path, kind)
        assert path is not None
        where, whole = path.relative_to(tmp_path), contents(path)
        calls = self._killed(policy, tmp_path / "counted", kind, after=10**9)
        assert calls > DEATHS
        for death in {1 + i * calls // DEATHS for i in range(DEATHS)}:
            folder = tmp_path / f"killed-{death}"
            self._killed(policy, folder, kind, after=death)
            found = contents(folder / where)
            assert found in ({}, whole), f"half of it is there: {sorted(found)}"
            # What the dead process left is no obstacle.
            self._save(policy, folder, kind)
            assert contents(folder / where) == whole

    # -- how ------------------------------------------------------------------------------------

    def _moved(self) -> Policy:
        policy = make_policy(lora=self.lora)
        move(policy, seed=1)
        return policy

    def _save(
        self, policy: Policy, run_dir: Path, kind: Literal["checkpoint", "final"]
    ) -> Path | None:
        (run_dir / "checkpoints" / "step-000003").mkdir(parents=True, exist_ok=True)
        return self.make().save(request(policy, run_dir, kind))

    def _killed(
        self, policy: Policy, run_dir: Path, kind: Literal["checkpoint", "final"], *, after: int
    ) -> int:
        """Save in a process that is killed at a call to the file system; how many calls it made."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            calls = 0

            def watch(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal calls
                if event in CALLS and str(arguments[0]).startswith(str(run_dir)):
                    calls += 1
                    if calls >= after:
                        os.kill(os.getpid(), signal.SIGKILL)

            status = 1
            try:
                sys.addaudithook(watch)
                self._save(policy, run_dir, kind)
                os.write(writer, str(calls).encode())
                status = 0
            finally:
                # Not the test process's own end: its fixtures and reports are not the child's.
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), "saving failed in another process"
        return int(said or 0)


@dataclass
class _OtherRank:
    """The policy as a rank sees it that is not the main one."""

    policy: Any
    is_main: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def request(policy: Policy, run_dir: Path, kind: Literal["checkpoint", "final"]) -> SaveRequest:
    """What a run of three steps asks."""
    return SaveRequest(
        kind=kind,
        step=3,
        run_dir=run_dir,
        policy=policy,
        config={"model": policy.settings.model_dump(mode="json"), "train": {"steps": 3}},
        manifest=(),
        metrics={"reward/mean": 0.5},
        history=({"reward/mean": 0.25}, {"reward/mean": 0.5}),
    )


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, by its path in it, as SHA-256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process may not grow beyond ``size`` bytes: writing then fails as on a full
    disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Without this the kernel ends the process instead of refusing the write.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
