"""The conformance suite of environments."""

from __future__ import annotations

from pathlib import Path

from grpo_core.testing import EnvironmentSuite
from grpo_tools import MultiTurn, MultiTurnConfig, Tools, ToolsConfig

SHORT = str(Path(__file__).parent / "short.jinja")


def double(a: int) -> int:
    """Double.

    Args:
        a: What.
    """
    return 2 * a


class Dice:
    """Chance from the seed that it is given."""

    def reset(self, rollout_seed: int) -> str:
        self.left = rollout_seed % 3
        return f" {rollout_seed % 10}"

    def step(self, text: str) -> str | None:
        self.left -= 1
        return "once more" if self.left >= 0 else None


class TestTools(EnvironmentSuite):
    completions = (
        ('<tool_call>{"name": "double", "arguments": {"a": 2}}</tool_call>', "4"),
        "straight away",
        ("<tool_call>nonsense</tool_call>", "oh"),
    )

    def make(self) -> Tools:
        return Tools(ToolsConfig(chat_template=SHORT), tools=[double])


class TestMultiTurn(EnvironmentSuite):
    def make(self) -> MultiTurn:
        return MultiTurn(MultiTurnConfig(chat_template=SHORT), environment_factory=Dice)
