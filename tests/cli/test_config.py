"""``grpo config``: starters that work, checks, what is shown, the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from grpo_core.cli.config import STARTERS, starter
from grpo_core.config import load_config


@pytest.mark.parametrize("task", STARTERS)
def test_a_starter_is_valid_as_it_is(grpo, task: str) -> None:
    done = grpo("config", "init", "--task", task, "--output", "mine.yaml")
    assert done.output == "mine.yaml: edit it, then: grpo train mine.yaml\n"
    assert grpo("config", "check", "mine.yaml").exit_code == 0
    assert load_config(["mine.yaml"]).component("task").name == task


@pytest.mark.parametrize("task", STARTERS)
def test_what_a_starter_has_commented_out_is_valid_too(task: str) -> None:
    Path("my_rewards.py").write_text("def brevity(completion_ids, **columns): return []\n")
    text = starter(task)
    for line in text.splitlines():
        if line.lstrip().startswith("# ") and ":" in line and "grpo " not in line:
            text = text.replace(line, line.replace("# ", "", 1))
    Path("mine.yaml").write_text(text)
    resolved = load_config(["mine.yaml"])
    assert "my_rewards.py:brevity" in [r.name for r in resolved.rewards]


def test_the_arithmetic_starter_names_the_bundled_model() -> None:
    path = Path(yaml.safe_load(starter("arithmetic"))["model"]["path"])
    assert (path / "config.json").is_file()


def test_init_never_overwrites(grpo) -> None:
    Path("grpo.yaml").write_text("precious")
    done = grpo("config", "init")
    assert done.exit_code == 2
    assert done.stderr == "Error: grpo.yaml exists already; choose another file with --output\n"
    assert Path("grpo.yaml").read_text() == "precious"


def test_init_says_what_cannot_be_written(grpo) -> None:
    done = grpo("config", "init", "--output", "no/such/folder.yaml")
    assert (done.exit_code, "cannot be written" in done.stderr) == (2, True)


def test_init_to_standard_output(grpo) -> None:
    assert grpo("config", "init", "--output", "-").output == starter("dataset")
    assert not list(Path().iterdir())


def test_check_names_what_it_found(grpo, config: str) -> None:
    done = grpo("config", "check", config)
    assert done.output.startswith("ok: task arithmetic, generator hf, environment single-turn,")


def test_check_of_a_wrong_config(grpo, config: str) -> None:
    done = grpo("config", "check", config, "--set", "train.step=3")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "train.step: unknown key; did you mean 'steps'?" in done.stderr


def test_show_merges_files_and_sets(grpo, config: str) -> None:
    Path("more.yaml").write_text("train: {group_size: 4}\n")
    done = grpo("config", "show", config, "more.yaml", "--set", "optimizer.learning_rate=1e-5")
    shown = yaml.safe_load(done.output)
    assert (shown["train"]["steps"], shown["train"]["group_size"]) == (10, 4)
    assert shown["optimizer"]["learning_rate"] == 1e-5
    assert shown["output"] == "runs/more"


def test_show_probe_says_what_auto_is_here_and_why(grpo, tiny_model: Path) -> None:
    Path("mine.yaml").write_text(starter("arithmetic"))
    model = f"model.path={tiny_model}"
    done = grpo("config", "show", "mine.yaml", "--set", model, "--probe")
    plain = grpo("config", "show", "mine.yaml", "--set", model).output
    assert done.output.startswith(plain)
    assert yaml.safe_load(done.output) == yaml.safe_load(plain)
    found = dict(
        line.removeprefix("#").split(maxsplit=1)
        for line in done.output[len(plain) :].splitlines()[2:]
    )
    assert found["layout"].startswith("prefix-tree, since it gives the hidden states")
    assert found["precision"].startswith("float32, since bf16")
    assert found.keys() == {"device", "precision", "threads", "layout"}


def test_show_probe_says_why_a_layout_was_refused(grpo, tmp_path: Path, tiny_model: Path) -> None:
    Path("mine.yaml").write_text(starter("arithmetic"))
    sets = [f"--set=model.path={tiny_model}", "--set=model.attn_implementation=eager"]
    done = grpo("config", "show", "mine.yaml", *sets, "--probe")
    assert "padded, because prefix-tree does not work here: model.attn_implementation" in (
        done.output
    )


def test_schema_is_json_and_knows_what_is_installed(grpo) -> None:
    schema = json.loads(grpo("config", "schema").output)
    titles = {branch.get("title") for branch in schema["$defs"]["loss"]["oneOf"]}
    assert {"grpo", "dapo", "dr-grpo", "import path"} <= titles
    without = json.loads(grpo("config", "schema", "--disable-plugin", "grpo-losses").output)
    assert "dapo" not in {b.get("title") for b in without["$defs"]["loss"]["oneOf"]}
