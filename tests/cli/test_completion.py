"""TAB: asked for as bash asks."""

from __future__ import annotations

import pytest


@pytest.fixture
def complete(shell):
    def run(line: str) -> list[str]:
        words = line.split(" ")
        done = shell(
            _GRPO_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [entry.partition(",")[2] for entry in done.stdout.splitlines() if entry]

    return run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("grpo pl", {"plugins"}),
        ("grpo plugins s", {"show"}),
        ("grpo config ", {"init", "check", "show", "schema"}),
        ("grpo train --dis", {"--disable-plugin"}),
        ("grpo train --disable-plugin grpo-l", {"grpo-losses"}),
        ("grpo plugins show los", {"loss"}),
        ("grpo plugins show loss d", {"dapo", "dr-grpo"}),
        ("grpo plugins show arith", {"arithmetic"}),
        ("grpo config init --task a", {"arithmetic"}),
    ],
)
def test_completion(complete, line: str, expected: set[str]) -> None:
    assert set(complete(line)) == expected


def test_a_plugin_that_cannot_be_loaded_stays_silent(complete) -> None:
    assert complete("grpo plugins show --plugin gone.py d") == []


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_for_each_shell(shell, name: str) -> None:
    done = shell(_GRPO_COMPLETE=f"{name}_source")
    if "Couldn't detect Bash version" in done.stderr:
        pytest.skip("click asks the bash that is installed for its version")
    assert "_GRPO_COMPLETE" in done.stdout
