"""Complete or absent, also when the process is killed outright."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_core.staging import _replace_folder, clear_staged, staged_file, staged_folder


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "run" / "final"
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["final"]
    assert (target / "a").read_text() == "1"


def interrupted(path: Path) -> None:
    path.write_text("new")
    raise KeyboardInterrupt


def disk_fills_up(path: Path) -> None:
    path.write_bytes(b"partial")
    with Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "final"
    with staged_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged_folder(target) as folder:
        interrupted(folder / "a")
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    with pytest.raises(FileNotFoundError), staged_file(target):
        pass  # nothing was written, so there is nothing to sync
    with pytest.raises(OSError, match="No space left"), staged_file(target) as path:
        disk_fills_up(path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_target_and_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / "final"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from grpo_core.staging import staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'stale').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    with staged_folder(target) as folder:
        (folder / "a").write_text("1")
    assert os.listdir(target) == ["a"]
    assert os.listdir(tmp_path) == ["final"]


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path: Path) -> None:
    target = tmp_path / "final"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        _replace_folder(tmp_path / "vanished", target)
    assert (target / "a").read_text() == "old"


def test_a_process_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "final"
    (tmp_path / ".final.old").mkdir()
    (tmp_path / ".final.old" / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged_folder(target) as folder:
        interrupted(folder / "a")
    assert (target / "a").read_text() == "old"


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path: Path) -> None:
    for name in (".curves.svg.tmp", ".README.md.tmp", "kept.tmp", ".kept"):
        (tmp_path / name).write_text("cut o")
    (tmp_path / ".folder.tmp").mkdir()
    clear_staged(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".folder.tmp", ".kept", "kept.tmp"]
