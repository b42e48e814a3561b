"""``grpo preview``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_core.cli.options import config_options, debug_option, installed, plugin_options
from grpo_core.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from grpo_core.config import ResolvedConfig
    from grpo_core.preview.results import Preview
    from grpo_core.rewards import Reward
    from grpo_core.types import Rollout


@click.command()
@config_options
@plugin_options
@click.option(
    "--prompts", type=click.IntRange(min=1), help="Prompts to sample; by default those of a step."
)
@click.option(
    "--completions",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON Lines with `completion` (or `completions`) and `prompt` or the `id` of one; nothing "
    "is sampled, and no model is loaded.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Completions to show, from the worst to the best.",
)
@click.option("--once", is_flag=True, help="Do not score a second time.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write everything as JSON; - is standard output, instead of the view.",
)
@debug_option
def preview(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
    prompts: int | None,
    completions: Path | None,
    examples: int,
    once: bool,
    json_file: Path | None,
) -> None:
    """Show what the rewards of CONFIG make of completions, before anything is trained.

    Samples as the first step would (or reads completions), asks every reward twice, and shows
    distributions, failures, latencies and examples. Ends with an error when a reward is broken:
    when a run would stop because of it.

    \b
    grpo preview run.yaml --prompts 16
    grpo preview run.yaml --completions written-by-hand.jsonl
    """
    from grpo_core.config import load_config

    if completions is not None and prompts is not None:
        raise click.UsageError(
            "--prompts says how much to sample, --completions that nothing is; give one of them"
        )
    resolved = load_config(files, sets, installed(plugin_files, disabled))
    try:
        from grpo_core.preview.scoring import examine

        rewards, rollouts, unit = _material(resolved, completions, prompts)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "grpo_core":
            raise
        raise ConfigError(
            f"a preview needs {error.name}, which is not installed: pip install 'grpo-core[hf]'"
        ) from error
    found = examine(
        rewards,
        rollouts,
        groups_per_call=resolved.config.train.prompts_per_step,
        twice=not once,
        examples=examples,
        unit=unit,
    )
    _publish(found, json_file)
    if found.broken:
        first = next(p for p in found.providers if p.broken)
        raise RewardError(
            f"broken: {', '.join(found.broken)}. {first.name}: {first.failures} of {first.asked} "
            "failed; a run would stop"
        )


def _material(
    resolved: ResolvedConfig, completions: Path | None, prompts: int | None
) -> tuple[Sequence[Reward], list[Rollout], str]:
    """Rewards, rollouts, and what the rollouts' lengths count."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if completions is None:
        from grpo_core.preview.sampling import sampled
        from grpo_core.run import build_run

        run = build_run(resolved)
        return run.rewards, sampled(run, prompts or run.settings.prompts_per_step), "tokens"
    from grpo_core.preview.given import rollouts_of
    from grpo_core.run import build_scoring

    task, rewards = build_scoring(resolved)
    encode, unit = _encoder(resolved)
    return rewards, rollouts_of(completions, task, encode), unit


def _encoder(resolved: ResolvedConfig) -> tuple[Callable[[str], Sequence[int]], str]:
    """The model's tokenizer, or UTF-8 where there is none; said in the view, by its unit."""
    from transformers import AutoTokenizer

    settings = resolved.config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.path,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        click.echo(
            f"no tokenizer at {settings.path!r}, so lengths count bytes, and rewards see bytes as "
            f"token ids ({str(error).splitlines()[0]:.100})",
            err=True,
        )
        return lambda text: list(text.encode("utf-8", "surrogatepass")), "bytes"
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), "tokens"


def _publish(found: Preview, json_file: Path | None) -> None:
    text = json.dumps({**asdict(found), "broken": list(found.broken)}, indent=2)
    if json_file is not None and str(json_file) == "-":
        return click.echo(text)
    from rich.console import Console

    from grpo_core.preview.view import show

    show(found, Console(highlight=False))
    if json_file is not None:
        try:
            json_file.write_text(text + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(f"{json_file} cannot be written: {error}") from error
    return None
