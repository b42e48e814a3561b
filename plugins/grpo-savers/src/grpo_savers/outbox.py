"""What waits to be uploaded: a queue on disk, so that no failure and no kill loses it.

::

    outbox/000001-final/job.json    where to
                       /files/      what: links to files of the run, and nothing else
           published.jsonl          one line per upload that is done
           log.txt                  what the uploader says
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_core.staging import staged_folder

OUTBOX = "outbox"
PUBLISHED = "published.jsonl"
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    # Code that trust_remote_code loads; transformers writes it beside the weights.
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "merge.json",
    "README.md",
    "curves.svg",
)
"""All that leaves of a model's folder, one folder down too. The state of training, configs of the
run and whatever else may lie there stay."""
ROLLOUT_FILES = ("*.parquet",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Where files go. Example: ``Destination(repo="me/model", kind="model", private=True)``."""

    repo: str
    kind: Literal["model", "dataset"]
    private: bool
    revision: str | None = None
    """A branch, made if it is new; ``None`` is the main one."""
    endpoint: str | None = None
    message: str = "Upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One upload that waits."""

    path: Path
    to: Destination

    @property
    def files(self) -> Path:
        return self.path / "files"


def put(
    run_dir: Path, name: str, files: Mapping[str, Path], texts: Mapping[str, str], to: Destination
) -> Job:
    """Add an upload; complete or absent.

    Args:
        name: for people; a job of this name that waits already gives way.
        files: path in the repository to a file, which is linked, or copied where links do not
            work: the run may delete its own while it waits.
        texts: path in the repository to what to write there.
    """
    outbox = run_dir / OUTBOX
    waiting = pending(run_dir)
    number = 1 + max([_number(job.path) for job in waiting], default=_last_number(outbox))
    target = outbox / f"{number:06d}-{name}"
    with staged_folder(target) as folder:
        for where, source in files.items():
            _link(source, folder / "files" / where)
        for where, text in texts.items():
            path = folder / "files" / where
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (folder / "job.json").write_text(json.dumps(asdict(to)), encoding="utf-8")
    for job in waiting:
        if job.path.name.partition("-")[2] == name and job.to.repo == to.repo:
            shutil.rmtree(job.path, ignore_errors=True)
    return Job(path=target, to=to)


def pending(run_dir: Path) -> list[Job]:
    """What waits, the oldest first."""
    found = []
    for path in sorted((run_dir / OUTBOX).glob("[0-9]*-*")):
        try:
            to = Destination(**json.loads((path / "job.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # being removed by the uploader at this moment
        found.append(Job(path=path, to=to))
    return found


def done(job: Job, url: str) -> None:
    """Note that a job is published, and forget it."""
    line = {"job": job.path.name, "repo": job.to.repo, "revision": job.to.revision, "url": url}
    with (job.path.parent / PUBLISHED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    shutil.rmtree(job.path, ignore_errors=True)


def published(run_dir: Path) -> list[dict[str, Any]]:
    """What has been uploaded so far, in order."""
    try:
        lines = (run_dir / OUTBOX / PUBLISHED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def chosen(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """The files of a folder, and of folders in it, that are meant to leave."""
    found = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        where = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in where.parts)
        # A link may point at anything on this machine.
        if hidden or path.is_symlink() or not path.is_file():
            continue
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            found[where.as_posix()] = path
    return found


@contextmanager
def uploading(run_dir: Path) -> Iterator[bool]:
    """Whether this process is the one that uploads, for as long as the block lasts."""
    outbox = run_dir / OUTBOX
    outbox.mkdir(parents=True, exist_ok=True)
    with (outbox / ".lock").open("a+", encoding="utf-8") as lock:
        yield _locked(lock.fileno())


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: two at once would upload twice, which does no harm.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _number(path: Path) -> int:
    return int(re.match(r"\d+", path.name)[0])  # type: ignore[index]


def _last_number(outbox: Path) -> int:
    lines = published(outbox.parent)
    return max([int(line["job"].partition("-")[0]) for line in lines], default=0)
