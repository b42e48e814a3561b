"""The uploader: a process of its own that empties a run's outbox.

``python -m grpo_savers.upload RUN_DIR``. Beside the training and not in it: hashing gigabytes does
not hold its interpreter, a hanging connection cannot keep it from ending, and what goes wrong here
cannot go wrong there.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_savers.outbox import Job, done, pending, uploading

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

ATTEMPTS = 6
"""Per job, with 1, 2, 4, 8, 16 seconds between them; huggingface_hub repeats single requests
besides."""
LONGEST_WAIT = 300.0
"""Seconds that a server may ask for by Retry-After."""
FAILED, BUSY = 1, 2
PERMANENT = {
    400: "the Hub refuses the upload",
    401: "the Hub does not know the token: `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: take one with write access, or another repo",
    404: "there is no such place on the Hub, or the token may not see it",
    413: "the Hub finds the files too large",
    422: "the Hub refuses the upload",
}
"""Status codes that waiting does not cure. Others are tried again: 409, another commit was made at
the same moment; 429, too many requests; 5xx."""


class UploadError(Exception):
    """An upload failed for good; says what to do."""


def upload(job: Job, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Upload a job, with several attempts; files that the Hub has already are not sent again.

    Returns:
        The address for people.

    Raises:
        UploadError: it did not work; the job still waits.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=job.to.endpoint)
    for attempt in range(ATTEMPTS):
        try:
            return _upload_once(api, job)
        except UploadError:
            raise
        except Exception as error:
            reason, wait = _judge(error, attempt)
            if wait is None or attempt == ATTEMPTS - 1:
                raise UploadError(f"{job.path.name} to {job.to.repo}: {reason}") from error
            logger.warning("%s: %s; again in %.0f s", job.path.name, reason, wait)
            sleep(wait)
    raise AssertionError


def _upload_once(api: HfApi, job: Job) -> str:
    to = job.to
    made = api.create_repo(to.repo, repo_type=to.kind, private=to.private, exist_ok=True)
    repo = made.repo_id
    if to.private and not api.repo_info(repo, repo_type=to.kind).private:
        raise UploadError(
            f"{repo} is public, and private was asked for; make it private, take another repo, or "
            "set private: false for the saver hub"
        )
    if to.revision is not None:
        api.create_branch(repo, branch=to.revision, repo_type=to.kind, exist_ok=True)
    # Else shards of an earlier, larger model would lie beside the new ones.
    old = ["*.safetensors", "*.safetensors.index.json"] if to.kind == "model" else None
    api.upload_folder(
        repo_id=repo,
        folder_path=job.files,
        repo_type=to.kind,
        revision=to.revision,
        commit_message=to.message,
        delete_patterns=old,
    )
    datasets = "datasets/" if to.kind == "dataset" else ""
    return f"{api.endpoint}/{datasets}{repo}/tree/{to.revision or 'main'}"


def _judge(error: Exception, attempt: int) -> tuple[str, float | None]:
    """What happened, and after how many seconds to try again; ``None`` is never."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = _chain(error)
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "HF_HUB_OFFLINE is set, so that nothing is sent", None
    response: Any = next(
        (e.response for e in chain if getattr(e, "response", None) is not None), None
    )
    # One line: the last line of the log is what the run shows.
    text = " ".join(without_token(f"{type(error).__name__}: {error}").split())
    if response is not None and response.status_code in PERMANENT:
        return f"{PERMANENT[response.status_code]} ({response.status_code}; {text})", None
    if any(isinstance(e, FileNotFoundError | PermissionError) for e in chain):
        return text, None
    wait = float(2**attempt)
    if response is not None:
        wait = max(wait, _retry_after(response.headers.get("Retry-After")))
    return text, wait


def _retry_after(value: str | None) -> float:
    try:
        return min(float(value or 0), LONGEST_WAIT)
    except ValueError:  # a date, which no Hub sends
        return 0.0


def _chain(error: BaseException) -> list[Any]:
    """The exception and what it came from: an upload's own is wrapped."""
    found: list[Any] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def without_token(text: str) -> str:
    """No message may hold the token: messages end up in files."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(hidden)") if token else text


def empty(run_dir: Path) -> list[str]:
    """Upload all that waits, also what is added meanwhile.

    Returns:
        The addresses.

    Raises:
        UploadError: one could not be uploaded, or another process is at it.
    """
    urls: list[str] = []
    with uploading(run_dir) as ours:
        if not ours:
            raise UploadError("another process is uploading from this run folder")
        while jobs := pending(run_dir):
            url = upload(jobs[0])
            done(jobs[0], url)
            logger.info("%s is published: %s", jobs[0].path.name, url)
            urls.append(url)
    return urls


def main() -> None:
    """The process; what it says goes to ``outbox/log.txt``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        empty(Path(sys.argv[1]))
    except UploadError as error:
        logger.error("%s", without_token(str(error)))
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
