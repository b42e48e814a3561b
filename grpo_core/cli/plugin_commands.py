"""Commands that plugins bring, beside grpo's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import click

from grpo_core.errors import ComponentCollisionError, PluginError

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import CommandOffer


class PluginGroup(click.Group):
    """A group that also has the commands of installed plugins.

    Plugins are looked for when a name is none of its own, or all are listed: a plugin can neither
    slow down nor replace a command of ``grpo``, and one that is broken breaks only its own.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(o.name for o in _offers())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        offers = [o for o in _offers() if o.name == cmd_name]
        if len(offers) > 1:
            who = " and ".join(str(o.source) for o in offers)
            raise ComponentCollisionError(
                f"command {cmd_name!r} is offered by {who}; uninstall one of them, or leave one "
                f"out with GRPO_DISABLE_PLUGINS={offers[0].source.plugin}"
            )
        return _load(offers[0]) if offers else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, with the plugins' own words: listing a command does not import it."""
        rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        rows += [(o.name, o.summary) for o in _offers() if o.name not in self.commands]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(set(rows)))


def _offers() -> tuple[CommandOffer, ...]:
    from grpo_core.plugins.discovery import discover

    return discover().commands


def _load(offer: CommandOffer) -> click.Command:
    module, _, attribute = offer.target.partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise PluginError(
            f"command {offer.name!r} of {offer.source} cannot be imported from {offer.target!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise PluginError(
            f"command {offer.name!r} of {offer.source}: {offer.target!r} is no click command"
        )
    return command
