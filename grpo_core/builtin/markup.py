"""HTML and SVG built from elements, so that no text can ever become one."""

from __future__ import annotations

import html

from grpo_core.builtin.text import visible


class Markup(str):
    """Text that is markup already; everything else is escaped on its way in."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element: ``tag("p", "1 < 2", class_="note")`` -> ``<p class="note">1 &lt; 2</p>``.

    Names are written in code and never come from data. ``class_`` is ``class``; ``stroke_width``
    is ``stroke-width``; an attribute that is ``None`` is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{joined(*children)}</{name}>")


VOID = frozenset({"meta"})


def joined(*children: object) -> Markup:
    """Children one after the other, those that are no markup escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escaped(c) for c in children))


def escaped(value: object) -> str:
    """Any value as text, within an element or in quotes."""
    return html.escape(visible(str(value)))
