"""The form, edge by edge."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.protocols import RewardProvider
from grpo_rewards.config import ThinkFormatConfig
from grpo_rewards.think_format import ThinkFormat

GOOD = [
    "<think>2-1=1 1*1=1 1*7=7 7*6=2</think><answer>2</answer>",
    "<think></think><answer>2</answer>",
    "<think>\nfirst\n\nsecond\n</think>\n\n<answer>\n2\n</answer>",
    "  <think>x</think> <answer>2</answer>\n",
    "<think>a < b, <b>bold</b></think><answer>x < y</answer>",
]
BAD = [
    "",
    "2",
    "<answer>2</answer>",
    "<think>x</think>",
    "<think>x<answer>2</answer>",
    "x</think><answer>2</answer>",
    "<think>x</think><answer>2",
    "<think>x</think><answer></answer>",
    "<think>x</think><answer> \n</answer>",
    "<think>x</think>so <answer>2</answer>",
    "so <think>x</think><answer>2</answer>",
    "<think>x</think><answer>2</answer>.",
    "<answer>2</answer><think>x</think>",
    "<think><think>x</think><answer>2</answer>",
    "<think>x</think></think><answer>2</answer>",
    "<think>x</think><think>y</think><answer>2</answer>",
    "<think>x</think><answer>1</answer><answer>2</answer>",
    "<think>x</think><answer><answer>2</answer>",
    "<think><answer>1</answer></think><answer>2</answer>",
    "<think>x</think><answer>2<think></answer>",
    "<Think>x</Think><Answer>2</Answer>",
]


@pytest.mark.parametrize("text", GOOD)
def test_well_formed(text: str) -> None:
    assert ThinkFormat().matches(text)


@pytest.mark.parametrize("text", BAD)
def test_ill_formed(text: str) -> None:
    assert not ThinkFormat().matches(text)


def test_it_is_a_provider_and_scores_in_order(score: Callable[..., list[Any]]) -> None:
    provider = ThinkFormat()
    assert isinstance(provider, RewardProvider)
    assert provider.name == "think-format"
    assert score(provider, {}, BAD[2], GOOD[0], BAD[0], GOOD[1]) == [0.0, 1.0, 0.0, 1.0]


def test_another_form() -> None:
    provider = ThinkFormat(ThinkFormatConfig(pattern=r"<r>.*</r>\w+"))
    assert provider.matches("<r>\n</r>done")
    assert not provider.matches("<r></r>done.")


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        ThinkFormatConfig(pattern="<think>(")


@pytest.mark.parametrize("part", ["<", "<think>", "<think></think>", " ", "x"])
def test_a_looping_completion_takes_linear_time(part: str) -> None:
    start = time.process_time()
    assert not ThinkFormat().matches("<think></think><answer>" + part * 100_000)
    assert not ThinkFormat().matches("<think>" + part * 100_000)
    assert not ThinkFormat().matches("<think></think>" + part * 100_000)
    assert time.process_time() - start < 2
