"""Combinations that cannot work, each with what to do about it."""

from __future__ import annotations

import pytest

from grpo_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: {group_size: 1}",
            "run.yaml:1: train.group_size: is 1, but advantage 'group' compares the completions of "
            "one prompt with each other: every advantage would be 0 and nothing would be learned; "
            "set train.group_size to 2 or more (8 is usual)",
        ),
        (
            "loss: {kl_coef: 0.04}",
            "run.yaml:1: loss.kl_coef: loss 'dapo' has kl_coef 0.04, which needs reference "
            "log-probs, but reference is 'none'; set reference.name to frozen (or adapter-off "
            "with LoRA), or loss.kl_coef to 0",
        ),
        ("loss: keen", "loss: loss 'keen' needs reference log-probs, but reference is 'none'"),
        (
            "reference: adapter-off",
            "run.yaml:1: reference.name: reference 'adapter-off' is the model without its LoRA "
            "adapter, but model.lora is not set",
        ),
        ("sampling: {temperature: 0}", "sampling.temperature: is 0: all completions of a group"),
        ("optimizer: {warmup_steps: 10}", "warmup_steps: is 10, but the run has 10 optimizer"),
        ("rewards: [{name: length, weight: 0}]", "rewards: every weight is 0"),
        ("rewards: [length, length]", "rewards: 2 rewards are called 'length'"),
        ("rewards: [length, {name: exact-answer, label: length}]", "2 rewards are called 'length'"),
    ],
)
def test_what_cannot_work(load, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "loss: {kl_coef: 0.04}\nreference: frozen",
        "loss: keen\nreference: frozen",
        "loss: {kl_coef: 0.04}\nreference: adapter-off\nmodel: {lora: {r: 4}}",
        "loss: plain\ntrain: {group_size: 1}",  # its advantage does not compare
        "train: {minibatches_per_step: 2}\noptimizer: {warmup_steps: 19}",
        "rewards: [{name: length, weight: 0}, exact-answer]",
        "rewards: [length, {name: length, label: other}]",
        "evaluation: {sampling: {greedy: {temperature: 0}}}",
    ],
)
def test_what_does_work(load, text: str) -> None:
    load(text)


def test_the_advantage_comes_with_the_loss(load) -> None:
    assert load("loss: plain").component("advantage").name == "sign"
    assert load("loss: dapo").component("advantage").name == "group"
    assert load("loss: plain\nadvantage: group").component("advantage").name == "group"
    assert load("loss: plain\nadvantage: null").component("advantage").name == "sign"


def test_a_group_size_that_an_advantage_asks_for(load, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("class Four:\n    min_group_size = 4\n")
    with pytest.raises(ConfigError, match=r"set train\.group_size to 4 or more"):
        load("advantage: mine.py:Four\ntrain: {group_size: 3}")
