"""Links within the repository lead somewhere, and every page can be reached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {
        name if plain[:index].count(name) == 0 else f"{name}-{plain[:index].count(name)}"
        for index, name in enumerate(plain)
    }


def links(page: Any) -> list[tuple[Path, str]]:
    """(file, anchor) of every relative link."""
    found = []
    for target in LINK.findall(FENCED.sub("", page.text)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            found.append(((page.path.parent / file).resolve() if file else page.path, anchor))
    return found


def test_links_lead_somewhere(page: Any) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name} links to {file}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{page.name}: {file.name}#{anchor}"


def test_every_page_of_the_documentation_is_linked(pages: list[Any], root: Path) -> None:
    by_path = {page.path: page for page in pages}
    reached, waiting = set(), [root / "README.md", root / "docs/README.md"]
    while waiting:
        path = waiting.pop()
        if path in by_path and path not in reached:
            reached.add(path)
            waiting += [file for file, _ in links(by_path[path])]
    documentation = {page.path for page in pages if "plugins" not in page.path.parts}
    assert reached >= documentation
