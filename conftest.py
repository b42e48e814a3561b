"""For the tests of the core and of every plugin here."""

import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no defect of what is tested: neither a slow example nor slow drawing fails, and
# the examples are the same in every run. `--hypothesis-profile explore` draws new ones.
timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("grpo", timeless, derandomize=True)
settings.register_profile("explore", timeless, max_examples=1000)
settings.load_profile("grpo")


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], object]], bool]:
    """``assert until(path.exists)``: waits for what an idle machine does at once and a busy one at
    some time. The bound is there so that a test ends, and is never what it tests."""

    def wait(condition: Callable[[], object]) -> bool:
        end = time.monotonic() + 120
        while not (found := condition()) and time.monotonic() < end:
            time.sleep(0.01)
        return bool(found)

    return wait
