"""``grpo train`` up to the point where training starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REWARD = "def brevity(prompts, completions, completion_ids, limit=5):\n    return [0.0]\n"
HOOKS = """
from grpo_core import hookimpl

def constant(prompts, completions, completion_ids, **columns):
    return [1.0 for _ in completions]

@hookimpl
def grpo_register_rewards(register):
    register("constant", constant, summary="Always 1.")
"""


def test_dry_run_shows_everything_as_yaml(grpo, config: str) -> None:
    done = grpo("train", "--dry-run", config, "--set", "loss=grpo", "--output", "runs/a b")
    assert done.exit_code == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["output"] == "runs/a b"
    assert shown["loss"]["name"] == "grpo"
    assert shown["sampling"]["temperature"] == 1.0
    comments = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert "#   rollouts_per_step                64" in comments
    assert "#   optimizer_steps                  10" in comments
    row = next(line.split() for line in comments if line.startswith("#   loss "))
    assert row[:3] == ["#", "loss", "grpo"]
    assert row[-1] == "grpo_losses.losses:Grpo"


def test_dry_run_touches_nothing_and_loads_again(grpo, config: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    first = grpo("train", "--dry-run", config).stdout
    assert sorted(tmp_path.rglob("*")) == before
    Path("resolved.yaml").write_text(first)
    assert grpo("train", "--dry-run", "resolved.yaml").stdout == first


def test_dry_run_imports_no_torch(config: str) -> None:
    code = (
        "import sys; from grpo_core.cli import main\n"
        f"sys.argv = ['grpo', 'train', '--dry-run', {config!r}]\n"
        "try: main()\n"
        "finally: print('heavy:', [n for n in ('torch', 'transformers', 'numpy') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_rewards_of_the_task(grpo, config: str) -> None:
    done = grpo("train", "--dry-run", config, "--set", "rewards=[]")
    assert "reward       (those that the task brings)" in done.stdout


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(
    grpo, config: str, dry: tuple[str, ...]
) -> None:
    Path("done").mkdir()
    Path("done/config.yaml").write_text("")
    done = grpo("train", config, "--output", "done", *dry)
    assert done.exit_code == 2
    assert done.stderr == (
        "Error: output folder 'done' already holds a run; go on with it by --resume, choose "
        "another with --output, or move the old one away\n"
    )
    assert "torch" not in done.stderr


def test_resume_before_the_config_is_explained(grpo, config: str) -> None:
    done = grpo("train", "--resume", config)
    assert done.exit_code == 2
    assert f"put --resume behind CONFIG: grpo train {config} --resume" in done.stderr


def test_resume_may_find_a_run_in_its_folder(grpo, config: str) -> None:
    Path("done").mkdir()
    Path("done/config.yaml").write_text("")
    for words in (("--resume",), ("--resume", "step-000002"), ("--resume-changed",)):
        done = grpo("train", config, "--output", "done", "--dry-run", *words)
        assert done.exit_code == 0, done.stderr


def test_a_missing_package_says_what_to_install(config: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from grpo_core.cli import main\n"
        f"sys.argv = ['grpo', 'train', {config!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: this needs torch, which is not installed: pip install 'grpo-core[hf]'\n"
    )


def test_a_reward_in_a_file_beside_the_config(shell, config: str) -> None:
    Path("my_rewards.py").write_text(REWARD)
    for name in ("my_rewards.py:brevity", "my_rewards:brevity"):
        setting = f"rewards=[{{name: '{name}', limit: 3}}]"
        done = shell("train", "--dry-run", config, "--set", setting)
        assert done.returncode == 0, done.stderr
        assert "limit: 3" in done.stdout


def test_a_single_file_plugin(grpo, config: str) -> None:
    Path("mine.py").write_text(HOOKS)
    words = ["config", "check", config, "--set", "rewards=[constant]"]
    assert grpo(*words, "--plugin", "mine.py").output.startswith("ok: ")
    done = grpo(*words)
    assert done.exit_code == 2
    assert "--set rewards=[constant]: rewards.0.name: there is no reward 'constant'" in done.stderr
    done = grpo(*words, "--plugin", "gone.py")
    assert (done.exit_code, "--plugin gone.py: there is no file" in done.stderr) == (2, True)


def test_disabling_a_plugin(grpo, config: str) -> None:
    done = grpo("train", "--dry-run", config, "--disable-plugin", "grpo-losses")
    assert done.exit_code == 2
    assert "It comes with grpo-losses, which is disabled." in done.stderr


@pytest.mark.parametrize("name", ["grpo-lossses", "grpo-core"])
def test_disabling_what_cannot_be_disabled(grpo, config: str, name: str) -> None:
    done = grpo("train", "--dry-run", config, "--disable-plugin", name)
    assert done.exit_code == 2
    assert f"--disable-plugin {name}: no such plugin can be left out. Loaded: grpo-" in done.stderr


def test_mistakes_of_file_and_command_line_together(grpo) -> None:
    Path("run.yaml").write_text("model: {path: m}\ntrain:\n  steps: x\ntask: arithmetc\n")
    done = grpo("train", "run.yaml", "--set", "loss.clip_hi=0.3")
    assert done.exit_code == 2
    for part in (
        "Error: 3 problems in the config:\n",
        '  run.yaml:3: train.steps: should be a valid integer, got "x"\n',
        "  run.yaml:4: task.name: there is no task 'arithmetc'; did you mean 'arithmetic'?",
        "  --set loss.clip_hi=0.3: loss.clip_hi: unknown key; did you mean 'clip_high'?",
    ):
        assert part in done.stderr
