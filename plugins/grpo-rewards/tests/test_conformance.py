"""What every reward promises."""

from __future__ import annotations

from grpo_core.testing import RewardSuite
from grpo_rewards import ExactAnswer, ThinkFormat


class TestExactAnswer(RewardSuite):
    columns = {"answer": "5"}
    completions = ("<answer>5</answer>", "<answer>6</answer>", "5")

    def make(self) -> ExactAnswer:
        return ExactAnswer()


class TestThinkFormat(RewardSuite):
    completions = ("<think>2+3</think><answer>5</answer>", "5", "<think></think>")

    def make(self) -> ThinkFormat:
        return ThinkFormat()
