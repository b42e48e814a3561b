"""docs/reference/components.md: what the first-party packages offer, with all options."""

from __future__ import annotations

from collections.abc import Iterator

from generators.config import HEAD, option_rows
from generators.source import cell, definition, docstring, prose, table
from grpo_core.cli.component import described
from grpo_core.cli.source import docstring as target_docstring
from grpo_core.config.components import checked_model
from grpo_core.plugins import ROLES, Registration, Registry, Role
from grpo_core.plugins.catalog import FIRST_PARTY

PROTOCOLS = "grpo_core/protocols.py"

INTRODUCTION = """\
# Components

What `grpo-core` and its first-party packages offer, by role. `grpo plugins list` shows what is
installed where you are, third-party packages included, and `grpo plugins show ROLE NAME` one
component with its options.
"""


def lines() -> Iterator[str]:
    yield INTRODUCTION
    registry = Registry.installed()
    ours = {"grpo-core", *FIRST_PARTY}
    for role in ROLES:
        offers = [r for r in registry.offers(role) if r.source.distribution in ours]
        yield from (f"## {role}", "", _role(role))
        for registration in offers:
            yield ""
            yield from _component(registration)
        yield ""


def _role(role: Role) -> str:
    """The first paragraph of what the contract says of a role."""
    name = {"reward": "RewardProvider"}.get(role, role.capitalize())
    definition(PROTOCOLS, name)
    return prose(docstring(PROTOCOLS, name).split("\n\n")[0])


def _component(registration: Registration) -> Iterator[str]:
    yield f"### {registration.role} `{registration.name}`"
    yield ""
    yield f"{cell(registration.summary)} From `{registration.source.distribution}`."
    said = target_docstring(registration)
    if said:
        yield from ("", prose(said))
    written = described(registration)
    if written:
        yield from ("", "```text", written, "```")
    model = checked_model(registration)
    rows = [] if model is None else option_rows(model)
    if rows:
        yield ""
        yield from table(HEAD, rows)
    else:
        yield from ("", "No options.")
