"""docs/reference/metrics.md, from docs/metrics.yaml."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import yaml

from generators.source import ROOT, cell, definition, table

INTRODUCTION = """\
# Metrics

Every step has one number per name, over all ranks: in `metrics.jsonl`, in TensorBoard, in
`train(run).history`, and in the event of `grpo_step_end`. Means are taken over what they are means
of, tokens or rollouts, not over microbatches. Evaluations have theirs in the event of
`grpo_evaluated` and in `train(run).evaluations`. A mean over nothing is left out.

`<provider>` stands for the name or label of a reward, `<source>` for a source of a mixture,
`<kind>` for a way of sampling, `sampled` or `greedy` unless the settings name others;
`gsm8k:greedy` where a task has several held-out data sets, `saved:greedy` after
`evaluation.after_saving`. See [how to evaluate](../how-to/evaluate.md).
"""

NOTICES = """\
## Notices

When a condition has held for several steps, and again each time its streak has doubled, a run says
so, in its log and in the event of `grpo_step_end`. What is known before the first step
(`off-policy-sampling`: see [what log-probs mean](../explanation/log-probs.md#what-log-probs-mean))
is said once, in the event of `grpo_run_start`.
"""


def groups() -> dict[str, dict[str, str]]:
    """Group to name to meaning, as written in docs/metrics.yaml."""
    loaded: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "docs/metrics.yaml").read_text())
    return loaded


def lines() -> Iterator[str]:
    yield INTRODUCTION
    for group, metrics in groups().items():
        rows = [(f"`{name}`", cell(meaning)) for name, meaning in metrics.items()]
        yield from (f"## `{group}/`", "", *table(("name", "meaning"), rows), "")
    yield NOTICES
    conditions = definition("grpo_core/trainer/health.py", "_CONDITIONS")
    assert isinstance(conditions, ast.AnnAssign)
    assert isinstance(conditions.value, ast.Tuple)
    for entry in conditions.value.elts:
        assert isinstance(entry, ast.Tuple)
        name, text = ast.literal_eval(entry.elts[0]), ast.literal_eval(entry.elts[2])
        yield f"* `{name}`: {cell(text.replace('{steps}', 'N').replace('{reward:.3g}', 'R'))}"
