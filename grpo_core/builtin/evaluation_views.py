"""An evaluation as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from grpo_core.builtin.text import prompt_text, shorten, visible
from grpo_core.types import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.types import EvalResult, Evaluated

CHARACTERS = 360


def results_table(results: Sequence[EvalResult]) -> Table:
    """One line per number, with its 95 % interval."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for name in ("held out", "reward", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("value", "95 % interval", "prompts"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        known = result.low is not None and result.high is not None
        table.add_row(
            *(Text(visible(word)) for word in (result.label, result.reward, result.measure)),
            Text(f"{result.value:.3f}", "bold"),
            f"{result.low:.3f} to {result.high:.3f}" if known else "-",
            f"{result.prompts:,}",
        )
    return table


def examples(event: Evaluated, count: int) -> Table:
    """The first completions, with what each reward said of them."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("prompt", ratio=2, overflow="fold", style="dim")
    table.add_column(f"completion, {visible(event.label)}", ratio=3, overflow="fold")
    scored = event.scored
    for name in scored.providers_F if scored else ():
        table.add_column(visible(name), justify="right")
    for row, rollout in enumerate(event.rollouts_B[:count]):
        outcomes = [outcomes[row] for outcomes in scored.outcomes_F_B] if scored else []
        table.add_row(
            _cell(prompt_text(rollout.prompt)),
            _cell(rollout.text),
            *(f"{o.value:.3g}" if isinstance(o, Value) else "-" for o in outcomes),
        )
    return table


def _cell(text: str) -> Text:
    # Text and not str: a plain string in a cell is markup, and "[/x]" in it would raise.
    return Text(visible(shorten(text, CHARACTERS)) or "(nothing)")
