"""Rollouts as the rows of a table that people read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.types import Abstained, Failed, Value

if TYPE_CHECKING:
    from grpo_core.types import Notice, Prompt, Rollout, ScoredRollouts


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """New rows only: what was sent before is not sent again.

    Example: ``Table(name="samples/train", columns=("step", "prompt"), rows=((1, "2+3=?"),))``.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def sample_table(
    name: str,
    step: int,
    rollouts_B: Sequence[Rollout],
    scored: ScoredRollouts | None,
    advantages_B: Sequence[float] | None,
    *,
    rows: int,
    characters: int,
) -> Table:
    """The first ``rows`` rollouts by group: what the completions of a prompt got stands together.

    A column ``reward/<provider>`` is empty where there is no value; ``no value`` says why.
    """
    order = sorted(range(len(rollouts_B)), key=lambda b: _place(rollouts_B[b]))[:rows]
    providers_F = scored.providers_F if scored is not None else ()
    columns: tuple[str, ...]
    columns = ("step", "prompt_id", "group", "sample", "prompt", "completion", "finish_reason")
    columns += tuple(f"reward/{provider}" for provider in providers_F)
    columns += ("no value",) if scored is not None else ()
    columns += ("advantage",) if advantages_B is not None else ()
    made = []
    for b in order:
        rollout = rollouts_B[b]
        row: list[Any] = [step, _text(rollout.prompt.id), rollout.group, rollout.sample]
        row += [_shorten(_text(t), characters) for t in (prompt_text(rollout.prompt), rollout.text)]
        row.append(rollout.finish_reason)
        if scored is not None:
            row += _rewards(scored, b, characters)
        if advantages_B is not None:
            row.append(_finite(advantages_B[b]))
        made.append(tuple(row))
    return Table(name=name, columns=columns, rows=tuple(made))


def notice_table(step: int, notices: Sequence[Notice]) -> Table:
    """What the run has to say at one step."""
    rows = tuple((step, notice.code, _text(notice.text)) for notice in notices)
    return Table(name="notices", columns=("step", "code", "text"), rows=rows)


def prompt_text(prompt: Prompt) -> str:
    """A prompt to read: the text, or every message under its role."""
    if isinstance(prompt.content, str):
        return prompt.content
    return "\n\n".join(
        f"[{m.get('role', '?')}] {_content(m.get('content'))}" for m in prompt.content
    )


def _content(content: object) -> str:
    if isinstance(content, list | tuple):
        parts = [p.get("text", f"<{p.get('type')}>") if isinstance(p, dict) else p for p in content]
        return " ".join(str(part) for part in parts)
    return "" if content is None else str(content)


def _rewards(scored: ScoredRollouts, b: int, characters: int) -> list[Any]:
    values: list[float | None] = []
    missing = []
    for provider, outcomes_B in zip(scored.providers_F, scored.outcomes_F_B, strict=True):
        outcome = outcomes_B[b]
        values.append(_finite(outcome.value) if isinstance(outcome, Value) else None)
        if isinstance(outcome, Failed):
            missing.append(f"{provider}: {outcome.kind}: {outcome.reason}")
        elif isinstance(outcome, Abstained):
            missing.append(f"{provider}: abstained {outcome.reason}".rstrip())
    return [*values, _shorten(_text("\n".join(missing)), characters)]


def _place(rollout: Rollout) -> tuple[int, int]:
    return rollout.group, rollout.sample


def _finite(value: float) -> float | None:
    # JSON has neither NaN nor infinity, and a table cell is not a curve.
    return float(value) if math.isfinite(value) else None


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]} [... {len(text) - head - tail:,} characters ...] {text[-tail:]}"


def _text(text: str) -> str:
    # Half a surrogate pair cannot be written as UTF-8: one odd completion would lose the table.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
