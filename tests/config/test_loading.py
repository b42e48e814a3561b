"""Every mistake is found, all of them at once, each where it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_core.errors import (
    ComponentCollisionError,
    ConfigError,
    PluginError,
    UnknownComponentError,
)


def message(load, *texts: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*texts, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\nloss:\n  name: dapo\n  clip_hi: 0.3\n",
            "run.yaml:4: loss.clip_hi: unknown key; did you mean 'clip_high'? "
            "Known: clip_high, clip_low, kl_coef, schedule, steps, words.",
        ),
        (
            "train: {learning_rate: 1}",
            "run.yaml:1: train.learning_rate: unknown key; did you mean 'optimizer.learning_rate'?",
        ),
        ("lerning_rate: 1", "lerning_rate: unknown key; did you mean 'optimizer.learning_rate'?"),
        ("zzz: 1", "run.yaml:1: zzz: unknown key; Known: advantage, checkpoints, environment,"),
        ("train: {steps: ten}", 'train.steps: should be a valid integer, got "ten"'),
        ("train: {steps: 10.5}", "train.steps: should be a valid integer, got 10.5"),
        ("train: {steps: '8'}", 'train.steps: should be a valid integer, got "8"'),
        ("train: {steps: true}", "train.steps: should be a valid integer, got true"),
        ("train: {steps: 0}", "train.steps: should be greater than or equal to 1, got 0"),
        ("train: [1]", "train: expected a mapping of keys to values, got [1]"),
        ("model: {path: 7}", "model.path: should be a valid string, got 7"),
        ("model: {dtype: fp16}", "model.dtype: should be 'auto', 'float32', 'bfloat16' or"),
        ("model: {lora: {rank: 3}}", "model.lora.rank: unknown key; Known: alpha, r, rslora,"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas.1: missing"),
        ("optimizer: {learning_rate: .nan}", "learning_rate: should be a finite number, got NaN"),
        (
            "train: {prompts_per_step: 5, minibatches_per_step: 2}",
            "run.yaml:1: train: prompts_per_step (5) must be a multiple of minibatches_per_step",
        ),
        ("output: 3", "output: should be a folder, got 3"),
        ("task: file", "run.yaml:1: task.path: missing: Where the prompts are."),
        ("task: {name: 3}", "task.name: should be a name, got 3"),
        ("generator: null", "generator: should be the name of a generator, or a mapping"),
        ("rewards: [length, 3]", "rewards.1: should be the name of a reward, or a mapping"),
        ("rewards: [{weight: 1}]", "rewards.0.name: missing: which reward? Installed: exact-"),
        ("rewards: [{name: length, weight: x}]", "rewards.0.weight: should be a valid number, got"),
        (
            "rewards: [{name: length, on_error: skip}]",
            "rewards.0.on_error: should be 'stop', 'drop",
        ),
        ("rewards: [{name: length, execution: {timout: 1}}]", "did you mean 'timeout'?"),
        ("rewards: [{name: exact-answer, column: x}]", "column: unknown key; Known: none."),
        ("loss: {schedule: {knd: x}}", "loss.schedule.knd: unknown key; did you mean 'kind'?"),
        ("loss: {steps: [{}, {kind: x}]}", "loss.steps.1.kind: should be 'linear' or 'cosine'"),
        ("loss: {words: 3}", "loss.words: should be a valid string or a valid array, got 3"),
        ("- a\n- b", "run.yaml:1: a config is a mapping of keys to values"),
        ("just words", "run.yaml:1: a config is a mapping of keys to values"),
        ("train: {steps: 1, steps: 2}", "key 'steps' is already given at run.yaml:1"),
    ],
)
def test_one_mistake(load, text: str, expected: str) -> None:
    found = message(load, text)
    assert expected in found
    assert "\n" not in found


def test_all_problems_at_once(load) -> None:
    found = message(
        load,
        """\
        train:
          stepz: 3
          group_size: x
        loss: dapoo
        rewards:
          - length
          - name: lenght
            weight: 1.0
        """,
        """
        savers: safetensors
        """,
        sets=["sampling.temperature=-1", "model.lora=yes"],
    )
    lines = found.splitlines()
    assert lines[0] == "7 problems in the config:"
    for start in (
        "  run.yaml:2: train.stepz: unknown key; did you mean 'steps'?",
        "  run.yaml:3: train.group_size: should be a valid integer",
        "  run.yaml:4: loss.name: there is no loss 'dapoo'; did you mean 'dapo'?",
        "  run.yaml:7: rewards.1.name: there is no reward 'lenght'; did you mean 'length'?",
        '  run2.yaml:2: savers: should be a list, for instance ["safetensors"]',
        "  --set sampling.temperature=-1: sampling.temperature: should be greater than or",
        "  --set model.lora=yes: model.lora: expected a mapping of keys to values, got",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert len(lines) == 8


def test_cross_checks_join_the_others(load) -> None:
    found = message(load, "train: {group_size: 1}\nlosss: dapo")
    assert "losss: unknown key" in found
    assert "run.yaml:1: train.group_size: is 1, but advantage 'group'" in found


def test_what_is_missing_from_everything(load) -> None:
    found = message(load, "output: x", minimal=False)
    assert "run.yaml: model: missing: the model to train" in found
    assert "run.yaml: task.name: missing: which task? Installed: digits, file." in found
    assert "run.yaml: train.steps: missing: Rollout batches." in found
    assert found.startswith("3 problems")


def test_files_that_cannot_be_read(load, tmp_path: Path, registry) -> None:
    from grpo_core.config import load_config

    Path("latin.yaml").write_bytes(b"output: caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["nowhere.yaml", "latin.yaml", str(tmp_path)], registry=registry)
    lines = str(caught.value).splitlines()
    assert "nowhere.yaml: there is no such file" in lines[1]
    assert "latin.yaml: cannot be read: 'utf-8' codec" in lines[2]
    assert f"{tmp_path}: cannot be read" in lines[3]
    # What the files would have held is not reported as missing.
    assert len(lines) == 4


def test_the_class_says_what_kind_of_problem_it_is(load) -> None:
    with pytest.raises(UnknownComponentError, match="there is no loss 'gspoo'"):
        load("loss: gspoo")
    with pytest.raises(ComponentCollisionError, match=r"offered by grpo-tests 0\.1 and grpo-tests"):
        load("loss: twice")
    with pytest.raises(PluginError, match=r"grpo-tests 0\.1 cannot be imported from 'grpo_no_such"):
        load("loss: nowhere")
    with pytest.raises(ConfigError, match="2 problems") as caught:
        load("loss: nowhere\nreference: gone")
    assert type(caught.value) is ConfigError


def test_an_option_that_no_config_could_set(load) -> None:
    with pytest.raises(PluginError, match=r"'greedy' of grpo-tests 0\.1 has an option 'weight'"):
        load("rewards: [greedy]")


MY_PARTS = """
def brevity(prompts, completions, completion_ids, limit=10):
    return [0.0 for _ in completions]

def anything(prompts, completions, completion_ids, **columns):
    return [0.0 for _ in completions]

class Watch:
    def __init__(self, config=None, context=None):
        pass

class Halver:
    def __init__(self, by=2):
        pass

from grpo_core.settings import Settings
class Told:
    class Config(Settings):
        loud: bool = False
    def __init__(self, config, context):
        pass

class Wrong:
    Config = dict

number = 3
"""


def test_import_paths(load, tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text(MY_PARTS)
    resolved = load(
        """
        rewards:
          - my_parts.py:anything
          - {name: "my_parts.py:brevity", limit: 5, weight: 0.5}
        observers:
          - my_parts.py:Watch
          - {name: "my_parts.py:Told", loud: true}
          - {name: "my_parts.py:Halver", by: 4}
        """
    )
    assert [r.options for r in resolved.rewards] == [None, {"limit": 5}]
    assert [o.plain_options() for o in resolved.all("observer")] == [{}, {"loud": True}, {"by": 4}]
    assert resolved.manifest()[-1]["distribution"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_parts.py:brevty", "has no 'brevty'; it has: brevity, anything, Watch"),
        ("my_parts.py:number", "is of type int, not a class or function"),
        ("gone.py:f", "there is no file 'gone.py' in"),
        ("no_such_module:f", "cannot import 'no_such_module': ModuleNotFoundError"),
        ("broken_parts.py:f", "SyntaxError"),
        ("{name: 'my_parts.py:brevity', limt: 5}", "limt: unknown key; did you mean 'limit'?"),
        # **kwargs are for data columns: taken for options, a misspelt key would say nothing.
        ("{name: 'my_parts.py:anything', weigth: 3}", "weigth: unknown key"),
        ("{name: 'my_parts.py:Watch', loud: 1}", "rewards.0.loud: unknown key; Known: none."),
        ("{name: 'my_parts.py:Told', load: 1}", "load: unknown key; did you mean 'loud'?"),
        ("my_parts.py:Wrong", "has config <class 'dict'>, which is no pydantic model"),
    ],
)
def test_import_paths_that_lead_nowhere(load, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "my_parts.py").write_text(MY_PARTS)
    (tmp_path / "broken_parts.py").write_text("def f(:\n")
    with pytest.raises((ConfigError, PluginError)) as caught:
        load(f"rewards: [{text}]" if text.startswith("{") else f'rewards: ["{text}"]')
    assert str(caught.value).startswith("run.yaml:1: rewards.0")
    assert expected in str(caught.value)
