import subprocess
import sys
import textwrap
from typing import Any

import pytest

from grpo_core.builtin.tensorboard import TensorBoard


def scalars(script: Any, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(script.run_dir / "tensorboard"))
    accumulator.Reload()
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(name)]


def test_scalars_are_read_back(script: Any) -> None:
    script.play(TensorBoard())
    assert scalars(script, "reward/mean") == [(n + 1, n / 10) for n in range(6)]
    assert scalars(script, "eval/greedy/exact-answer") == [(0, 0.25), (3, 0.55), (6, 0.85)]


def test_a_resumed_run_has_every_step_once(script: Any) -> None:
    script.play(TensorBoard(), last=5)
    script.play(TensorBoard(), first=3)
    assert [step for step, _ in scalars(script, "reward/mean")] == [1, 2, 3, 4, 5, 6]


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    code = """
        import sys
        sys.modules["tensorboard"] = None
        from grpo_core.builtin.tensorboard import TensorBoard
        from grpo_core.errors import ConfigError
        try:
            TensorBoard()
        except ConfigError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    assert "'tensorboard': pip install grpo-core[tensorboard]" in out
