"""Write docs/reference/ from code and schemas: ``python docs/generate.py``.

A test compares what this would write with what is in the repository.
"""

from __future__ import annotations

from pathlib import Path

from generators import api, cli, components, config, hooks, metrics, presets, readme

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py; change the code (or docs/generators) instead. -->"
PAGES = (api, cli, components, config, hooks, metrics)


def generated() -> dict[Path, str]:
    """Every generated file and its text."""
    files = {}
    for page in PAGES:
        name = page.__name__.rpartition(".")[2]
        files[REFERENCE / f"{name}.md"] = "\n".join([NOTE, "", *page.lines()]).rstrip() + "\n"
    return files | readme.files() | presets.files()


def main() -> None:
    """Write what differs, and say so."""
    for path, text in generated().items():
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
