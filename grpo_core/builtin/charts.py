"""Line charts as inline SVG: axes, ticks, several series, a value under the mouse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_core.builtin.history import number
from grpo_core.builtin.markup import Markup, joined, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.builtin.history import Curve

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 8, 24
SMOOTH_FROM = 24
"""Points; longer curves are drawn faint, with a moving mean over them."""
MOST_POINTS = 400
MOST_LABELS = 150


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart. ``dots`` marks every point; ``exact`` says that there is no noise for a
    moving mean to take out."""

    name: str
    curve: Curve
    dots: bool = False
    exact: bool = False

    @property
    def smooth(self) -> bool:
        return len(self.curve) >= SMOOTH_FROM and not (self.dots or self.exact)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """From numbers to places on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def down(self, value: float) -> float:
        low, high = self.y
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def chart(title: str, remark: str, series: Sequence[Series]) -> Markup:
    """A titled chart; nothing at all when no series has a point."""
    series = [s for s in series if s.curve]
    if not series:
        return Markup("")
    picture = tag(
        "svg", drawing(series), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title
    )
    legend = [tag("span", s.name, class_=f"key s{i % 6}") for i, s in enumerate(series)]
    caption = tag("p", *(legend if len(series) > 1 else ()), tag("span", remark), class_="remark")
    return tag("figure", tag("figcaption", title), picture, caption)


def drawing(series: Sequence[Series]) -> Markup:
    """Axes and lines of series that have points, as SVG elements on ``WIDTH`` by ``HEIGHT``."""
    frame = _frame(series)
    return joined(_axes(frame), *(_line(frame, s, f"s{i % 6}") for i, s in enumerate(series)))


def _frame(series: Sequence[Series]) -> Frame:
    steps = [x for s in series for x, _ in s.curve]
    values = [y for s in series for _, y in s.curve]
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0.0  # a curve that comes near zero is easier to judge with zero in sight
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    first, last = min(steps), max(steps)
    bottom = low if low == 0 else low - room
    return Frame(x=(first, last if last > first else first + 1), y=(bottom, high + room))


def ticks(low: float, high: float, parts: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that cut the range into at most ``parts``."""
    rough = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / size - 1e-9)
    count = math.floor(high / size + 1e-9) - first + 1
    return [(first + i) * size for i in range(count)]


def _axes(frame: Frame) -> Markup:
    parts = []
    for value in ticks(*frame.y, parts=6):
        y = frame.down(value)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        label = _label(value, frame.y)
        parts.append(tag("text", label, x=LEFT - 6, y=y + 3.5, text_anchor="end"))
    for value in ticks(*frame.x, parts=6):
        if value == round(value):
            place = {"x": frame.across(value), "y": HEIGHT - BOTTOM + 16}
            parts.append(tag("text", f"{value:,.0f}", **place, text_anchor="middle"))
    return joined(*parts)


def _label(value: float, bounds: tuple[float, float]) -> str:
    """A tick's number, short and without float dust."""
    biggest = max(abs(bounds[0]), abs(bounds[1]))
    if value == 0:
        return "0"
    if biggest < 1e-3 or biggest >= 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4g}" if biggest < 10 else f"{value:,.6g}"


def _line(frame: Frame, series: Series, color: str) -> Markup:
    curve = series.curve
    parts = []
    parts.append(_path(frame, _thinned(curve), f"line {color}{' raw' if series.smooth else ''}"))
    if series.smooth:
        parts.append(_path(frame, _thinned(moving_mean(curve)), f"line {color}"))
    stride = math.ceil(len(curve) / MOST_LABELS)
    for x, y in curve[::stride]:
        said = f"{series.name}, step {x}: {number(y)}"
        dot = {"cx": frame.across(x), "cy": frame.down(y), "r": 3 if series.dots else 5}
        visible = series.dots or len(curve) == 1
        parts.append(
            tag("circle", tag("title", said), **dot, class_=f"dot {color}" if visible else "touch")
        )
    return joined(*parts)


def _path(frame: Frame, curve: Curve, classes: str) -> Markup:
    points = " ".join(f"{frame.across(x)},{frame.down(y)}" for x, y in curve)
    return tag("polyline", points=points, class_=classes)


def window(points: int) -> int:
    """How many steps a moving mean spans: an odd number, so that it has a middle."""
    return max(3, points // 15 | 1)


def moving_mean(curve: Curve) -> Curve:
    """Mean of the points around each point; fewer at the ends."""
    half = window(len(curve)) // 2
    sums = [0.0]
    for _, y in curve:
        sums.append(sums[-1] + y)
    ends = [(max(0, i - half), min(len(curve), i + half + 1)) for i in range(len(curve))]
    return [(x, (sums[b] - sums[a]) / (b - a)) for (x, _), (a, b) in zip(curve, ends, strict=True)]


def _thinned(curve: Curve) -> Curve:
    """Few enough points to draw; of each part the lowest and the highest, so that no spike is
    lost."""
    if len(curve) <= MOST_POINTS:
        return curve
    size = math.ceil(len(curve) / (MOST_POINTS // 2))
    kept: Curve = []
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        extremes = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept.extend(sorted(extremes))
    return kept
