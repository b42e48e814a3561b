"""The report is one safe file, and its curves are where the numbers are."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from grpo_core.builtin.charts import HEIGHT, Series, chart, moving_mean, ticks
from grpo_core.builtin.jsonl import JsonlMetrics
from grpo_core.builtin.markup import Markup, joined, tag
from grpo_core.builtin.report import Report

VOID = ("meta",)


class Page(HTMLParser):
    """Every element with its attributes, the text by element, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


def written(script: Any) -> str:
    text: str = (script.run_dir / "report.html").read_text()
    return text


def report(script: Any) -> Page:
    script.play(Report())
    return Page(written(script))


def test_everything_is_on_the_page(script: Any) -> None:
    manifest = [{"role": "loss", "name": "grpo", "distribution": "grpo-losses", "version": "9.8"}]
    (script.run_dir / "components.json").write_text(json.dumps(manifest))
    text = "\n".join(report(script).texts)
    for expected in (
        "6 of 6 steps in 0:00; finished",
        "0.250 → 0.850",
        "held out: exact-answer, greedy",
        "all rewards were 0.0",
        "Completion length",
        "0 +3=?",
        "<answer>0</answer>",
        "<answer>6</answer>",
        "grpo-losses",
        "train.steps",
        "rollouts per step 1,280",
    ):
        assert expected in text
    assert len(set(re.findall(r"\d \+3=\?", text))) == 8  # as many samples as it keeps


def test_no_element_and_no_attribute_comes_from_data(script: Any) -> None:
    harmless = report(script)
    script.text = script.notice = script.hostile
    hostile = report(script)
    assert hostile.elements == harmless.elements
    assert "<script>alert(1)</script> <img src=x" in "\n".join(hostile.texts)
    assert r"\x1b]0;pwned" in "\n".join(hostile.texts)


def test_names_from_plugins_make_no_markup_either(script: Any) -> None:
    script.names = (script.hostile.replace("/", ""), "b")
    page = report(script)
    assert {name for name, _ in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "section", "div", "span"),
        *("h1", "h2", "p", "b", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre"),
        *("figure", "figcaption", "svg", "line", "text", "polyline", "circle"),
    }
    assert not any(key.startswith("on") for _, attributes in page.elements for key, _ in attributes)


def test_the_page_may_load_and_run_nothing(script: Any) -> None:
    report(script)
    text = written(script)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src &#x27;none&#x27;; style-src &#x27;sha256-{digest}&#x27;" in text
    assert not re.search(r"(src|href)=|url\(|@import|https?:", text)
    assert " style=" not in text  # the policy would ignore it, and the page look broken


def test_secrets_of_the_config_stay_out(script: Any) -> None:
    page = report(script)
    assert "s3cret" not in written(script)
    assert "rewards.0.judge_api_key" in page.texts
    assert "(hidden)" in page.texts


def test_it_is_there_from_the_start_on(script: Any) -> None:
    observer = Report()
    observer.grpo_run_start(script.start())
    assert "0 of 6 steps in 0:00; running" in written(script)
    script.play(observer, last=1, end=False)
    assert "0 of 6 steps in 0:00; running" in written(script)
    assert not list(script.run_dir.glob("*.tmp"))


def test_a_failure_is_told(script: Any) -> None:
    observer = Report()
    script.play(observer, last=2, end=False)
    observer.grpo_run_end(script.end(status="failed", steps_done=2, error="RewardError: a < b"))
    assert "failed: RewardError: a &lt; b" in written(script)


def test_a_resumed_run_draws_its_earlier_steps(script: Any) -> None:
    script.play(JsonlMetrics(), last=3)
    script.play(Report(), first=3)
    said = re.findall(r"<title>norm, step (\d+)", written(script))
    assert said == ["1", "2", "4", "5", "6"]  # step 3 was NaN: a gap, not a zero
    assert "0.250 → 0.850" in written(script)


def test_a_run_without_metrics_has_a_page(script: Any) -> None:
    script.metrics = lambda step: {}
    script.evaluated = lambda step: ()
    script.play(Report())
    assert "Curves" not in written(script)


def test_points_lie_where_their_values_say() -> None:
    markup = chart("t", "r", [Series(name="a", curve=[(0, 0.0), (5, 5.0), (10, 10.0)])])
    points = re.search(r'points="([^"]+)"', markup)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points[1].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert 0 < y2 < y0 < HEIGHT  # up is up
    grid = {y: v for v, y in _labels(markup)}
    assert grid[min(grid, key=lambda y: abs(y - y0))] == "0"


def _labels(markup: str) -> list[tuple[str, float]]:
    found = re.findall(r'<text x="44" y="([\d.]+)" text-anchor="end">([^<]+)<', markup)
    return [(label, float(y) - 3.5) for y, label in found]


@pytest.mark.parametrize(
    "curve",
    [
        [(1, 5.0)],
        [(n, 0.0) for n in range(3)],
        [(n, 1e-9) for n in range(3)],
        [(n, -1e12 * n) for n in range(50)],
        [(n, float(n % 7)) for n in range(20_000)],
    ],
)
def test_odd_curves_are_drawn_small(curve: list[tuple[int, float]]) -> None:
    markup = chart("t", "", [Series(name="a", curve=curve)])
    assert "nan" not in markup
    assert len(markup) < 60_000
    labels = [label for label, _ in _labels(markup)]
    assert len(labels) == len(set(labels)) >= 2


def test_a_spike_survives_thinning() -> None:
    curve = [(n, 100.0 if n == 12_345 else 0.0) for n in range(20_000)]
    markup = chart("t", "", [Series(name="a", curve=curve)])
    lines = re.findall(r'points="([^"]+)" class="line s0 raw"', markup)
    heights = {p.split(",")[1] for p in lines[0].split()}
    assert len(heights) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 61, [10, 20, 30, 40, 50, 60]),
        (-1, 1.1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 6) == pytest.approx(expected)


def test_a_moving_mean_of_a_line_is_the_line() -> None:
    curve = [(n, 2.0 * n) for n in range(60)]
    assert [y for _, y in moving_mean(curve)][5:-5] == pytest.approx([y for _, y in curve][5:-5])


def test_text_is_escaped_once() -> None:
    assert tag("b", "<i>", title='"') == '<b title="&quot;">&lt;i&gt;</b>'
    assert joined("<", Markup("<hr>"), tag("i", tag("b", "&"))) == "&lt;<hr><i><b>&amp;</b></i>"
