"""The latest evaluation, in the form that the Hub reads: the card's ``model-index``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult

from grpo_savers.card_text import code, local_name, table

if TYPE_CHECKING:
    from grpo_core.types import EvalResult as Found
    from grpo_core.types import SaveRequest


def eval_results(request: SaveRequest) -> list[EvalResult]:
    """One entry per number; the rewards are the run's own, and so are the prompts."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_dataset(request, found),
            dataset_name=_dataset(request, found),
            metric_type=found.measure,
            metric_name=f"{found.reward} {found.measure}, {found.label}",
            metric_value=round(found.value, 6),
        )
        for found in request.results
    ]


def results_table(results: Sequence[Found]) -> str:
    """The same for people, with intervals; empty without an evaluation."""
    if not results:
        return ""
    rows = (
        [
            code(found.label),
            code(found.reward),
            code(found.measure),
            f"{found.value:.4g}",
            "" if found.low is None else f"{found.low:.4g} to {found.high:.4g}",
            str(found.prompts),
        ]
        for found in results
    )
    head = ("held out", "reward", "measure", "value", "95 % interval", "prompts")
    return "## Evaluation\n\n" + table(head, rows)


def _dataset(request: SaveRequest, found: Found) -> str:
    task = request.config.get("task") or {}
    path = task.get("path")
    named = local_name(path) if isinstance(path, str) else str(task.get("name") or "prompts")
    return found.dataset or named
