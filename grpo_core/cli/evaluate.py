"""``grpo eval``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_core import __version__
from grpo_core.cli.options import debug_option, installed, override, plugin_options
from grpo_core.cli.train import needs_extras
from grpo_core.staging import staged_file

if TYPE_CHECKING:
    from grpo_core.config import ResolvedConfig
    from grpo_core.types import Evaluated


@click.command("eval")
@click.argument("model")
@click.option(
    "-c",
    "--config",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(),
    help="Take task, rewards, sampling and so on from here; by default from the run that MODEL "
    "lies in, if it lies in one.",
)
@click.option("--task", metavar="NAME", help="Where prompts come from; its options by --set.")
@click.option("--reward", "rewards", metavar="NAME", multiple=True, help="What scores them.")
@click.option("--samples", type=click.IntRange(min=1), help="Per prompt, for pass@k.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 is greedy.")
@click.option("--prompts", type=click.IntRange(min=1), help="At most so many of each data set.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--show", type=click.IntRange(min=0), default=3, show_default=True, help="Examples.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="Write results as JSON.")
@click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value of the config, e.g. task.path=test.jsonl, sampling.top_p=0.95.",
)
@plugin_options
@debug_option
def evaluate(
    model: str,
    files: tuple[str, ...],
    task: str | None,
    rewards: tuple[str, ...],
    samples: int | None,
    temperature: float | None,
    prompts: int | None,
    seed: int,
    show: int,
    output: str | None,
    sets: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
) -> None:
    """Measure MODEL, a folder or a Hub id, on held-out prompts.

    \b
    grpo eval runs/first/final
    grpo eval Qwen/Qwen3-0.6B --task dataset --set task.path=test.jsonl --reward exact-answer
    grpo eval runs/first/final --samples 16 --temperature 0.8 -o results.json

    Completions are drawn as the config's `evaluation` says, or as --samples and --temperature
    do. Several samples give pass@k without bias, and majority@k where a reward can tell answers.
    """
    from grpo_core.config import load_config

    own = [override("model.path", model), override("train.seed", seed)]
    if task is not None:
        own.append(override("task", task))
    if rewards:
        own.append(override("rewards", list(rewards)))
    resolved = load_config(
        _layers(model, files, samples=samples, temperature=temperature, prompts=prompts),
        [*own, *sets],
        installed(plugin_files, disabled),
    )
    with needs_extras():
        from grpo_core.run import build_run
        from grpo_core.trainer import evaluate_model
    events = evaluate_model(build_run(resolved))
    _print(events, show)
    if output is not None:
        with staged_file(Path(output)) as path:
            path.write_text(json.dumps(report(resolved, events), indent=2) + "\n", "utf-8")
        click.echo(f"written: {output}")


def _layers(
    model: str,
    files: Sequence[str],
    *,
    samples: int | None,
    temperature: float | None,
    prompts: int | None,
) -> list[str | Mapping[str, Any]]:
    """The config's layers, lowest first. Nothing is trained, saved or observed."""
    beside = Path(model).parent / "config.yaml"
    lowest: dict[str, Any] = {"train": {"steps": 1}, "evaluation": {"prompts": _ALL}}
    found: list[str | Mapping[str, Any]] = [lowest, *files]
    if not files and beside.is_file():
        found.append(str(beside))
    highest: dict[str, Any] = {
        "model": {"lora": None, "revision": None},
        "savers": [],
        "observers": [],
        "checkpoints": None,
        "evaluation": {"prompts": prompts or _ALL},
    }
    if samples is not None or temperature is not None:
        way = {"samples": samples or 1, "temperature": temperature}
        name = "greedy" if temperature == 0 else "sampled"
        highest["evaluation"]["sampling"] = {name: way}
    return [*found, highest]


_ALL = 1_000_000_000


def report(resolved: ResolvedConfig, events: Sequence[Evaluated]) -> dict[str, Any]:
    """What ``--output`` holds: every number with its interval, and how it came about."""
    config = resolved.plain()
    kept = ("model", "task", "rewards", "environment", "generator", "sampling", "evaluation")
    return {
        "grpo_core": __version__,
        "config": {name: config[name] for name in kept} | {"seed": config["train"]["seed"]},
        "components": resolved.manifest(),
        "results": [dict(result.plain()) for event in events for result in event.results],
        "metrics": {name: value for event in events for name, value in event.metrics.items()},
    }


def _print(events: Sequence[Evaluated], show: int) -> None:
    from rich.console import Console

    from grpo_core.builtin.evaluation_views import examples, results_table

    terminal = Console(highlight=False)
    if show and events:
        terminal.print(examples(events[0], show))
    terminal.print(results_table([result for event in events for result in event.results]))
