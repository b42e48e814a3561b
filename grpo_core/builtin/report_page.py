"""The page of the `report` observer: one HTML file that needs nothing else and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from grpo_core.builtin.charts import Series, chart, window
from grpo_core.builtin.history import counts, number, spoken
from grpo_core.builtin.markup import Markup, tag
from grpo_core.builtin.text import shorten
from grpo_core.secrets import without_secrets

if TYPE_CHECKING:
    from grpo_core.builtin.history import History, Snapshot

SAMPLE_CHARACTERS = 4000

CURVES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Completion length",
        "tokens",
        (("mean", "length/mean"), ("those that ended", "length/finished_mean")),
    ),
    ("Entropy", "nats per token", (("entropy", "entropy/mean"),)),
    ("KL to the reference", "nats per token", (("KL", "kl/reference"),)),
    ("Gradient norm", "before clipping", (("norm", "optim/grad_norm"),)),
    (
        "Clipped tokens",
        "share",
        (("below", "ratio/clip_low"), ("above", "ratio/clip_high")),
    ),
    (
        "Nothing to learn from",
        "share",
        (
            ("groups without signal", "group/no_signal"),
            ("completions cut off", "length/truncated_share"),
        ),
    ),
    ("Sampler against trainer", "KL in nats per token", (("KL", "ratio/sampler_mismatch_kl"),)),
    ("Learning rate", "at the last update", (("rate", "optim/learning_rate"),)),
    (
        "Time per step",
        "seconds",
        (
            ("all", "time/step"),
            ("sampling", "time/sample"),
            ("scoring", "time/score"),
            ("update", "time/update"),
        ),
    ),
)
EXACT = frozenset({"optim/learning_rate"})


def page(
    history: History,
    *,
    title: str,
    state: str,
    config: Mapping[str, Any],
    derived: Mapping[str, Any],
    components: Sequence[Mapping[str, Any]],
) -> str:
    """The whole document. ``state`` is a sentence about how far the run is."""
    style = files("grpo_core.builtin").joinpath("report.css").read_text(encoding="utf-8")
    # No script, no network, no style but this one: should markup ever slip in, it can do nothing.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", state), _gains(history)),
        _section("Notices", _notices(history)),
        _section("Curves", _curves(history)),
        _section("Held-out prompts", _samples(history.first, history.last)),
        _section("Components", _table(components)),
        _section("Config", _config(config)),
        _section("Derived", tag("p", " · ".join(counts(derived))) if derived else Markup("")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content) if content else Markup("")


def _gains(history: History) -> Markup:
    """First and latest held-out value of every reward, large."""
    tiles = []
    for name in history.evaluations():
        curve = history.curves[name]
        now = number(curve[-1][1])
        text = now if len(curve) == 1 else f"{number(curve[0][1])} → {now}"
        tiles.append(tag("div", tag("b", text), tag("span", f"held out: {spoken(name)}")))
    return tag("div", *tiles, class_="tiles") if tiles else Markup("")


def _notices(history: History) -> Markup:
    items = [
        tag("li", tag("b", f"step {step + 1}, {notice.code}: "), notice.text)
        for step, notice in history.notices
    ]
    return tag("ul", *items, class_="notices") if items else Markup("")


def _curves(history: History) -> Markup:
    held_out = [
        Series(name=spoken(n), curve=history.curves[n], dots=True) for n in history.evaluations()
    ]
    providers = [n for n in history.curves if re.fullmatch(r"reward/.+/mean", n)]
    rewards = [("total", "reward/mean")]
    if len(providers) > 1:
        rewards += [(n.removeprefix("reward/").removesuffix("/mean"), n) for n in providers]
    drawn = [chart("Held-out reward", "mean over prompts", held_out)]
    for title, remark, lines in (("Reward", "mean over rollouts", tuple(rewards)), *CURVES):
        series = [
            Series(name=label, curve=history.curves.get(n, []), exact=n in EXACT)
            for label, n in lines
        ]
        spans = [window(len(s.curve)) for s in series if s.smooth]
        said = f"{remark}; bold: mean of {max(spans)} steps" if spans else remark
        drawn.append(chart(title, said, series))
    return tag("div", *drawn, class_="charts") if any(drawn) else Markup("")


def _samples(first: Snapshot | None, last: Snapshot | None) -> Markup:
    if first is None or not first.prompts:
        return Markup("")

    def cell(text: str) -> Markup:
        return tag("td", tag("pre", shorten(text, SAMPLE_CHARACTERS) or "(nothing)"))

    shown = [first] if last is None else [first, last]
    when = [f"after step {s.step}" if s.step else "before training" for s in shown]
    head = tag("tr", *(tag("th", text) for text in ("prompt", *when)))
    rows = [
        tag("tr", cell(prompt), *(cell(s.completions.get(key, "")) for s in shown))
        for key, prompt in first.prompts.items()
    ]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="samples")


def _table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    columns = ("role", "name", "distribution", "version", "target")
    if not rows:
        return Markup("")
    head = tag("tr", *(tag("th", c) for c in columns))
    body = [tag("tr", *(tag("td", _said(row.get(c))) for c in columns)) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", *body))


def _config(config: Mapping[str, Any]) -> Markup:
    flat = _flat(without_secrets(config), "")
    rows = [tag("tr", tag("td", key), tag("td", _said(value))) for key, value in flat]
    return tag("table", tag("tbody", *rows), class_="config") if rows else Markup("")


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    """Nested data as dotted keys: ``{"train": {"steps": 3}}`` -> ``[("train.steps", 3)]``."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        pairs = [(str(index), item) for index, item in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for key, item in pairs for leaf in _flat(item, f"{path}.{key}" if path else key)]


def _said(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | list | tuple):
        return ", ".join(map(str, value)) if value else "none"
    return str(value)
