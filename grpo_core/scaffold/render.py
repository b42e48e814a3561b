"""Files of a new package, and writing them."""

from __future__ import annotations

import datetime
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from grpo_core import __version__
from grpo_core.errors import ConfigError
from grpo_core.plugins.registrar import API, Role, hook_of, plural
from grpo_core.scaffold.names import Names
from grpo_core.staging import staged_folder

License = Literal["Apache-2.0", "MIT", "none"]

SUMMARIES: dict[Role, str] = {
    "task": "Sums of two numbers, with the reward for a right answer.",
    "generator": "Ancestral sampling in the same process, without a cache.",
    "environment": "One completion is one rollout; counts words for rewards.",
    "reward": "1 if the completion holds the answer's text, else 0.",
    "advantage": "Reward minus the mean of its group, within bounds.",
    "loss": "PPO's clipped objective per action token.",
    "reference": "A copy of the policy, of the start or of some steps ago.",
    "saver": "The last metrics and the components of a run as JSON.",
    "observer": "Writes one metric into a text file.",
}
"""What each template does as it is; the first thing that an author replaces."""

NEEDS_TORCH = frozenset({"advantage", "generator", "loss", "reference"})
LISTS = frozenset({"reward", "saver", "observer"})
"""Roles of which a config names several."""
LINE = 100


def files_of(names: Names, kind: Role, licence: License = "Apache-2.0") -> dict[str, str]:
    """Path within the new package's folder to text."""
    values = _values(names, kind, licence)
    source = f"src/{names.package}"
    plan = {
        "pyproject.toml": "package/pyproject.toml",
        "README.md": "package/README.md",
        "example.yaml": "package/example.yaml",
        ".gitignore": "package/gitignore",
        f"{source}/__init__.py": "package/init.py",
        f"{source}/plugin.py": "package/plugin.py",
        f"{source}/config.py": f"{kind}/config.py",
        f"{source}/{kind}.py": f"{kind}/component.py",
        f"tests/test_{names.component.replace('-', '_')}.py": f"{kind}/tests.py",
    }
    if licence != "none":
        plan["LICENSE"] = f"licenses/{licence}"
    made = {path: _wrapped(_template(name).substitute(values)) for path, name in plan.items()}
    return {**made, f"{source}/py.typed": ""}


def write(names: Names, kind: Role, parent: Path, licence: License = "Apache-2.0") -> Path:
    """Write a new package to a folder of its name in ``parent``, completely or not at all.

    Raises:
        ConfigError: the folder exists, or cannot be written; nothing is ever overwritten.
    """
    target = parent / names.distribution
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already; choose another name, or another --directory")
    if not parent.is_dir():
        raise ConfigError(f"there is no folder {parent}; make it, or choose another --directory")
    try:
        with staged_folder(target) as staging:
            for path, text in files_of(names, kind, licence).items():
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                (staging / path).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error}") from error
    return target


def _values(names: Names, kind: Role, licence: License) -> dict[str, str | int]:
    named = re.match(r"(\d+)\.(\d+)", __version__)
    assert named is not None
    major, minor = named.groups()
    return {
        "distribution": names.distribution,
        "package": names.package,
        "component": names.component,
        "cls": names.cls,
        "kind": kind,
        "hook": hook_of(kind),
        "api": API,
        "summary": SUMMARIES[kind],
        "core_version": f"{major}.{minor}",
        "core_below": f"{major}.{int(minor) + 1}",
        "more_dependencies": '    "torch>=2.9",\n' if kind in NEEDS_TORCH else "",
        "license_line": '# license = "..."' if licence == "none" else f'license = "{licence}"',
        "year": datetime.datetime.now(tz=datetime.UTC).year,
        "usage": _usage(names, kind),
        "example": _example(names, kind),
    }


def _usage(names: Names, kind: Role) -> str:
    if kind in LISTS:
        return f"{plural(kind)}: [{names.component}]\n"
    return f"{kind}: {names.component}\n"


def _example(names: Names, kind: Role) -> str:
    """A whole config around the new component, without the model."""
    lines = ["train: {steps: 100, prompts_per_step: 8, group_size: 8}\n"]
    if kind != "task":
        lines.append("task: arithmetic\n")
    if kind not in ("task", "reward"):
        lines.append("rewards: [exact-answer]\n")
    return "".join([*lines, _usage(names, kind)])


def _wrapped(text: str) -> str:
    """Imports that a long name has made too long, as a formatter would set them."""
    return re.sub(
        r"^(from \S+ import) ([^(\n]+)$",
        lambda m: m[0] if len(m[0]) <= LINE else f"{m[1]} (\n    {m[2]},\n)",
        text,
        flags=re.MULTILINE,
    )


def _template(name: str) -> Template:
    text = files("grpo_core.scaffold") / "templates" / f"{name}.tmpl"
    return Template(text.read_text("utf-8"))
