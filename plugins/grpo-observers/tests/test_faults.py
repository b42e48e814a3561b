"""The real libraries against a port where nobody listens, and a server that never answers."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("faults_child.py")
LIBRARIES = {"Comet": "comet_ml", "MLflow": "mlflow", "Trackio": "trackio", "Wandb": "wandb"}
LONGEST = {"Comet": 400.0, "MLflow": 400.0, "Trackio": 400.0, "Wandb": 85.0}
"""Seconds of the whole process: the timeout of 3 s at the start and at the end, imports, MLflow's
database, which takes a minute where four others work, and what libraries clean up at the exit. By
themselves W&B waits 90 s at the start, MLflow a quarter of an hour and Comet hours."""


@pytest.fixture(params=["closed", pytest.param("silent", marks=pytest.mark.slow)])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    if request.param == "silent":
        server.listen(64)
    # Bound without listening, it refuses, and nobody else gets the port meanwhile.
    yield server.getsockname()[1]
    server.close()


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_run_is_neither_stopped_nor_held_up_and_its_data_are_kept(
    name: str, port: int, tmp_path: Path
) -> None:
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "WANDB_API_KEY": "x" * 40,
        "WANDB_BASE_URL": url,
        "COMET_API_KEY": "x" * 25,
        "COMET_URL_OVERRIDE": f"{url}/clientlib/",
        "MLFLOW_TRACKING_URI": url,
        "TRACKIO_SERVER_URL": url,
        "TRACKIO_WRITE_TOKEN": "x",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(CHILD), name, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < LONGEST[name], done.stderr
    if name == "Trackio":
        # It keeps what it cannot send, and says so itself.
        kept = tmp_path / "trackio" / "faults.db"
        assert "remote Trackio server" in done.stderr or "trackio" in done.stderr.lower()
    else:
        assert "records on this machine only" in done.stderr
        where = {"Comet": "comet/*.zip", "MLflow": "mlflow.db", "Wandb": "wandb/offline-*/*.wandb"}
        (kept,) = (tmp_path / "run").glob(where[name])
    assert kept.stat().st_size > 1000
