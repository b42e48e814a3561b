"""What a new package and its component are called."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass

from grpo_core.errors import ConfigError
from grpo_core.plugins.catalog import FIRST_PARTY, provider_of
from grpo_core.plugins.registrar import Role, plural

MOST_CHARACTERS = 30

OWN: dict[Role, tuple[str, ...]] = {
    "task": ("arithmetic", "dataset", "mixture"),
    "generator": ("scripted",),
    "environment": ("single-turn",),
    "observer": ("console", "jsonl", "report", "tensorboard"),
}
"""What the core itself offers; a test compares it with what is registered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """All spellings of one name. Example: ``Names(distribution="grpo-rewards-near",
    package="grpo_rewards_near", component="near", cls="Near")``."""

    distribution: str
    """As pip calls it."""
    package: str
    """As Python imports it."""
    component: str
    """As a config names it."""
    cls: str


def names_of(name: str, kind: Role) -> Names:
    """The spellings of what somebody typed: ``My Reward``, ``my_reward``, ``grpo-rewards-my``.

    Without ``grpo-`` in front the distribution becomes ``grpo-<kinds>-<name>``, as is convention.

    Raises:
        ConfigError: it is no name, or one that is taken by grpo-core or its own packages.
    """
    # PEP 503: runs of `-`, `_` and `.` are one dash, and case does not count.
    typed = re.sub(r"[-_.\s]+", "-", name.strip()).lower().strip("-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", typed):
        raise ConfigError(
            f"{name!r} cannot name a package: expected letters, digits and dashes, beginning with "
            "a letter, such as 'closeness' or 'grpo-rewards-closeness'"
        )
    prefix = f"grpo-{plural(kind)}-"
    component = typed.removeprefix(prefix).removeprefix("grpo-")
    distribution = typed if typed.startswith("grpo-") else prefix + typed
    if not component or distribution in {"grpo-core", *FIRST_PARTY}:
        raise ConfigError(f"{distribution} is one of grpo-core's own packages; choose another name")
    if not component[0].isalpha():
        raise ConfigError(f"{name!r}: {component!r} must begin with a letter")
    if len(component) > MOST_CHARACTERS:
        raise ConfigError(
            f"{component!r} has {len(component)} characters; configs, metrics and errors repeat "
            f"the name, so it may have {MOST_CHARACTERS}"
        )
    owner = "grpo-core" if component in OWN.get(kind, ()) else provider_of(kind, component)
    if owner is not None:
        raise ConfigError(
            f"{owner} has a {kind} {component!r} already, and a config could name neither where "
            "both are installed; choose another name"
        )
    package = distribution.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise ConfigError(f"{package!r} means something else in Python; choose another name")
    cls = "".join(part.capitalize() for part in component.split("-"))
    return Names(distribution=distribution, package=package, component=component, cls=cls)
