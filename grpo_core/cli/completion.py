"""What the shell offers after TAB. Completion never fails and never prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _quiet(complete: Complete) -> Complete:
    def completed(ctx: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
        # A traceback in the middle of a command line helps nobody.
        with contextlib.suppress(Exception):
            return [item for item in complete(ctx, param, word) if item.value.startswith(word)]
        return []

    return completed


def _registry(ctx: click.Context) -> Any:
    from grpo_core.plugins import Registry

    return Registry.installed(files=ctx.params.get("plugin_files") or ())


@_quiet
def complete_plugins(ctx: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Installed plugins, broken ones too: those are worth leaving out."""
    discovery = _registry(ctx).discovery
    sources = [*discovery.plugins, *(broken.source for broken in discovery.broken)]
    return [CompletionItem(s.plugin, help=str(s)) for s in sources if s.plugin != "grpo-core"]


@_quiet
def complete_components(
    ctx: click.Context, param: click.Parameter, word: str
) -> list[CompletionItem]:
    """Roles and component names, or the names of the role that was given before."""
    from grpo_core.plugins import ROLES

    registry = _registry(ctx)
    words = ctx.params.get("words") or ()
    roles = [role for role in ROLES if not words or role == words[0]]
    items = [] if words else [CompletionItem(role, help="a role") for role in roles]
    offers = [r for role in roles for r in registry.offers(role)]
    return items + [CompletionItem(r.name, help=f"{r.role}: {r.summary}") for r in offers]
