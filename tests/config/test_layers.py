"""Defaults < files < --set, and what each of them may leave out."""

from __future__ import annotations

import pytest

from grpo_core.errors import ConfigError
from grpo_core.settings import RewardExecution


def test_defaults(load) -> None:
    config = load().config
    assert [o.name for o in config.observers] == ["console", "jsonl", "report"]
    assert [s.name for s in config.savers] == ["safetensors", "rollouts"]
    assert config.loss.name == "dapo"
    assert config.loss.options["clip_high"] == 0.28
    assert config.reference.name == "none"
    assert config.advantage.name == "group"
    assert config.rewards == ()
    assert config.evaluation is None
    assert config.train.group_size == 8


def test_the_output_is_named_after_the_last_file(load) -> None:
    assert load("train: {steps: 1}").config.output == "runs/run"
    assert load("", "").config.output == "runs/run2"
    assert load("output: there", "").config.output == "there"


def test_later_files_win_key_by_key(load) -> None:
    resolved = load(
        """
        train: {group_size: 4, seed: 7}
        loss: {clip_low: 0.1, clip_high: 0.4}
        rewards: [length, exact-answer]
        """,
        """
        train: {group_size: 16}
        loss: {clip_high: 0.5}
        rewards: [{name: length, target: 5}]
        """,
    )
    assert (resolved.config.train.group_size, resolved.config.train.seed) == (16, 7)
    assert resolved.config.loss.options["clip_low"] == 0.1
    assert resolved.config.loss.options["clip_high"] == 0.5
    assert [r.plain_options() for r in resolved.rewards] == [{"target": 5}]


def test_a_changed_name_drops_options_meant_for_the_other(load) -> None:
    text = "loss: {name: dapo, clip_low: 0.1}"
    assert load(text, "loss: plain").component("loss").plain_options() == {"delta": 1.0}
    assert load(text, sets=["loss=plain"]).component("loss").plain_options() == {"delta": 1.0}
    assert load(text, sets=["loss.name=plain"]).component("loss").plain_options() == {"delta": 1.0}
    assert load(text, "loss: dapo").config.loss.options["clip_low"] == 0.1


def test_the_command_line_is_one_layer_whatever_its_order(load) -> None:
    for sets in (
        ["loss.delta=3", "loss=plain"],
        ["loss=plain", "loss.delta=3"],
        ["loss.delta=3", "loss.name=plain"],
    ):
        assert load(sets=sets).component("loss").plain_options() == {"delta": 3.0}


@pytest.mark.parametrize(
    ("sets", "path", "value"),
    [
        (["train.steps=5"], "train.steps", 5),
        (["train.steps=5", "train.steps=6"], "train.steps", 6),
        (["optimizer.learning_rate=1e-6"], "optimizer.learning_rate", 1e-6),
        (["optimizer.betas=[0.9, 0.95]"], "optimizer.betas.1", 0.95),
        (["model.lora.r=4"], "model.lora.r", 4),
        (["model.lora.r=4", "model.lora=null", "model.lora.alpha=8"], "model.lora.r", 4),
        (["model.revision="], "model.revision", None),
        (["model.revision='12'"], "model.revision", "12"),
        (["model.mixed_precision=no"], "model.mixed_precision", "no"),
        (["model.init_kwargs.a.b=1"], "model.init_kwargs.a.b", 1),
        (["evaluation.every=5"], "evaluation.every", 5),
        (["evaluation={}"], "evaluation.prompts", 256),
        (["rewards=[length]", "rewards.0.weight=2"], "rewards.0.weight", 2.0),
        (["rewards.0=length", "rewards.0.weight=2"], "rewards.0.weight", 2.0),
        (["rewards.0.name=length", "rewards.0.target=3"], "rewards.0.target", 3),
        (["rewards=[{name: length, weight: 3, target: 9}]", "rewards.0.weight=2"], "rewards.0", {
            "name": "length", "weight": 2.0, "label": None, "on_error": "stop", "target": 9,
            "execution": RewardExecution().model_dump(),
        }),
        (["observers.3=tensorboard"], "observers.3.name", "tensorboard"),
        (["observers.0=tensorboard"], "observers.0.name", "tensorboard"),
        (["savers=[]"], "savers", []),
        (["output=a=b"], "output", "a=b"),
        (["train.seed = 3"], "train.seed", 3),
        (["model={path: other, dtype: bfloat16}"], "model.dtype", "bfloat16"),
        (["loss.schedule.kind=cosine"], "loss.schedule.kind", "cosine"),
        (["loss.steps=[{start: 1}]", "loss.steps.0.kind=cosine"], "loss.steps.0.start", 1.0),
        (["loss.words=[a, b]"], "loss.words", ["a", "b"]),
    ],
)  # fmt: skip
def test_set(load, sets: list[str], path: str, value: object) -> None:
    found = load(sets=sets).plain()
    for part in path.split("."):
        found = found[int(part) if isinstance(found, list) else part]
    assert found == value


def test_set_wins_over_files_and_keeps_the_rest(load) -> None:
    text = "rewards: [{name: length, target: 5, weight: 3}, exact-answer]"
    rewards = load(text, sets=["rewards.0.target=6", "rewards.1.label=right"]).rewards
    assert [(r.name, r.weight, r.label) for r in rewards] == [
        ("length", 3.0, None),
        ("exact-answer", 1.0, "right"),
    ]
    assert rewards[0].plain_options() == {"target": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("train..steps=3", "--set train..steps=3: expected KEY=VALUE"),
        ("loss=[", "--set loss=[: not valid YAML"),
        ("rewards.2=length", "rewards.2: '2' is no position in a list of 0"),
        ("observers.-1=jsonl", "observers.-1: '-1' is no position in a list of 3"),
        ("train.steps=many", "--set train.steps=many: train.steps: should be a valid integer"),
        ("train.steps.x=1", 'train.steps: should be a valid integer, got {"x": 1}'),
        ("losses=grpo", "losses: unknown key; did you mean 'loss'?"),
        ("rewards=length", "rewards: should be a list"),
        ("loss=3", "loss: should be the name of a loss"),
    ],
)
def test_wrong_sets(load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(sets=[text])
    assert message in str(caught.value)


def test_plain_data_is_a_layer_too(registry) -> None:
    from grpo_core.config import load_config

    data = {"model": {"path": "m"}, "task": "digits", "train": {"steps": 3}}
    assert load_config([data], ["train.seed=4"], registry).config.train.seed == 4
    with pytest.raises(ConfigError, match=r"^config: train.steps: should be a valid integer"):
        load_config([data, {"train": {"steps": "x"}}], registry=registry)


def test_an_empty_section_has_its_defaults(load) -> None:
    # All its lines are commented out.
    assert load("sampling:\noptimizer:\n").config.sampling.max_tokens == 256
