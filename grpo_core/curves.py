"""Training curves as one SVG file, for places that show images and run no scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from grpo_core.builtin.charts import HEIGHT, WIDTH, Series, drawing
from grpo_core.builtin.markup import joined, tag

Lines = Mapping[str, Sequence[tuple[int, float]]]
"""Name to (steps done, value) pairs: ``{"reward/mean": [(1, 0.2), (2, 0.4)]}``."""

COLUMNS = 2
TITLE, LEGEND = 26, 18
COLORS = ("#2563b8", "#d9730d", "#2e8b57", "#a3459c", "#8a6d1f", "#5f6b7a")
STYLE = "".join(
    [
        "text{font:11px sans-serif;fill:#5b6470}.title{font:bold 13px sans-serif;fill:#1c2430}",
        ".grid{stroke:#dde2e8}.line{fill:none;stroke-width:1.6}.raw{opacity:.35}",
        ".touch{fill:none}",
        *(f".line.s{i}{{stroke:{c}}}.dot.s{i},.key.s{i}{{fill:{c}}}" for i, c in enumerate(COLORS)),
    ]
)


def curves_svg(charts: Sequence[tuple[str, Lines]]) -> str | None:
    """One chart per (title, lines) that has a finite point, on white; ``None`` without any.

    No text can become markup, and no element is anything but a drawing.
    """
    shown = [(title, _series(lines)) for title, lines in charts]
    shown = [(title, series) for title, series in shown if series]
    if not shown:
        return None
    high = TITLE + HEIGHT + LEGEND
    width, height = WIDTH * min(COLUMNS, len(shown)), high * math.ceil(len(shown) / COLUMNS)
    parts = [
        tag(
            "g",
            tag("text", title, x=8, y=18, class_="title"),
            tag("g", drawing(series), transform=f"translate(0 {TITLE})"),
            *_legend(series),
            transform=f"translate({i % COLUMNS * WIDTH} {i // COLUMNS * high})",
        )
        for i, (title, series) in enumerate(shown)
    ]
    return tag(
        "svg",
        tag("style", STYLE),
        tag("rect", width="100%", height="100%", fill="white"),
        joined(*parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
    )


def _series(lines: Lines) -> list[Series]:
    found = []
    for name, points in lines.items():
        curve = [(step, value) for step, value in points if math.isfinite(value)]
        if curve:
            found.append(Series(name=name, curve=curve))
    return found


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) == 1:
        return []
    place = WIDTH // len(series)
    return [
        tag("text", s.name, x=8 + i * place, y=TITLE + HEIGHT + 10, class_=f"key s{i % 6}")
        for i, s in enumerate(series)
    ]
