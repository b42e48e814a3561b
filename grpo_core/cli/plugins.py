"""``grpo plugins``: what is installed, and what each component can be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grpo_core.builtin.text import visible
from grpo_core.cli.columns import columns
from grpo_core.cli.completion import complete_components
from grpo_core.cli.options import debug_option, installed, plugin_options
from grpo_core.errors import UnknownComponentError

if TYPE_CHECKING:
    from grpo_core.plugins import Registration, Registry
    from grpo_core.plugins.registrar import Role
    from grpo_core.scaffold.render import License

KINDS = (
    *("task", "generator", "environment", "reward", "advantage", "loss", "reference", "saver"),
    "observer",
)
"""The roles; written out, because completion in a shell should not import the registry."""


@click.group()
def plugins() -> None:
    """Show what is installed and can be named in a config."""


@plugins.command("list")
@plugin_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def list_(plugin_files: tuple[str, ...], disabled: tuple[str, ...], as_json: bool) -> None:
    """List all components by role, and plugins that are broken or disabled."""
    registry = installed(plugin_files, disabled)
    if as_json:
        return click.echo(json.dumps(_data(registry), indent=2))
    return click.echo("\n".join(_table(registry)))


@plugins.command()
@click.argument("words", metavar="[ROLE] NAME", nargs=-1, shell_complete=complete_components)
@plugin_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of components.")
@debug_option
def show(
    words: tuple[str, ...],
    plugin_files: tuple[str, ...],
    disabled: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show one component: what it is, where it comes from, its options."""
    from grpo_core.cli.component import as_data, as_text

    if len(words) not in (1, 2):
        raise click.UsageError("expected NAME, or ROLE NAME")
    found = _named(installed(plugin_files, disabled), *words)
    if as_json:
        return click.echo(json.dumps([as_data(r) for r in found], indent=2))
    return click.echo("\n\n".join(as_text(r) for r in found))


@plugins.command()
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(KINDS), required=True, help="The role that it has a variant of."
)
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where its folder is made; by default here.",
)
@click.option(
    "--license",
    "licence",
    type=click.Choice(("Apache-2.0", "MIT", "none")),
    default="Apache-2.0",
    show_default=True,
    help="The LICENSE file; none writes none.",
)
@debug_option
def new(name: str, kind: Role, directory: Path, licence: License) -> None:
    """Make a plugin package that works: to be installed, tested, and made your own.

    \b
    grpo plugins new closeness --kind reward
    """
    from grpo_core.scaffold.names import names_of
    from grpo_core.scaffold.render import files_of, write

    names = names_of(name, kind)
    target = write(names, kind, directory, licence)
    for path in sorted(files_of(names, kind, licence)):
        click.echo(f"  {target / path}")
    click.echo(
        f"{names.distribution}: {kind} {names.component!r}. Next:\n"
        f"  pip install --editable {target}\n"
        f"  python -m pytest {target}\n"
        f"  grpo plugins show {kind} {names.component}"
    )


def _named(registry: Registry, *words: str) -> list[Registration]:
    """``ROLE NAME``, or every role's component of that name."""
    from grpo_core.plugins import ROLES, find

    role = next((r for r in ROLES if r == words[0]), None)
    if len(words) == 2:
        if role is None:
            raise click.UsageError(f"{words[0]!r} is no role; roles: {', '.join(ROLES)}")
        if ":" in words[1]:
            return [find(registry, role, words[1])]
        # Not `get`, which refuses a name that is offered twice: here both are worth seeing.
        return [r for r in registry.offers(role) if r.name == words[1]] or [
            registry.get(role, words[1])
        ]
    found = [r for each in ROLES for r in registry.offers(each) if r.name == words[0]]
    if not found:
        names = {name for each in ROLES for name in registry.names(each)}
        raise UnknownComponentError(
            f"no role has a component {words[0]!r}. Installed: {', '.join(sorted(names))}. An "
            "import path needs its role: grpo plugins show reward package.module:Name"
        )
    return found


def _table(registry: Registry) -> list[str]:
    from grpo_core.plugins import ROLES

    discovery = registry.discovery
    lines: list[str] = []
    for role in ROLES:
        offers = registry.offers(role)
        rows = [(r.name, r.summary, str(r.source)) for r in offers]
        lines += [click.style(role, bold=True), *(columns(rows) or ["  none installed"]), ""]
        twice = sorted({r.name for r in offers if _collides(registry, r)})
        for name in twice:
            who = " and ".join(str(r.source) for r in offers if r.name == name)
            lines[-1:] = [visible(f"  ! {name!r} is offered by {who}: a config cannot name it"), ""]
    if discovery.broken:
        failures = [(b.source.plugin, str(b.source), b.target, b.reason) for b in discovery.broken]
        lines += [click.style("broken", bold=True), *columns(failures), ""]
    if discovery.disabled:
        lines += [click.style("disabled", bold=True)]
        lines += [*columns([(s.plugin, str(s)) for s in discovery.disabled]), ""]
    return lines[:-1]


def _data(registry: Registry) -> dict[str, Any]:
    from grpo_core.plugins import ROLES

    discovery = registry.discovery
    return {
        "components": [
            {
                "role": r.role,
                "name": r.name,
                "summary": r.summary,
                "plugin": r.source.plugin,
                "distribution": r.source.distribution,
                "version": r.source.version,
                "target": r.target_path,
                "collides": _collides(registry, r),
            }
            for role in ROLES
            for r in registry.offers(role)
        ],
        "broken": [
            {
                "plugin": b.source.plugin,
                "distribution": b.source.distribution,
                "version": b.source.version,
                "target": b.target,
                "reason": b.reason,
            }
            for b in discovery.broken
        ],
        "disabled": [
            {"plugin": s.plugin, "distribution": s.distribution, "version": s.version}
            for s in discovery.disabled
        ],
    }


def _collides(registry: Registry, registration: Registration) -> bool:
    offers = registry.offers(registration.role)
    return sum(r.name == registration.name for r in offers) > 1
