"""The command group: what every command shares, errors above all."""

from __future__ import annotations

import traceback
from typing import Any

import click

from grpo_core import __version__
from grpo_core.builtin.text import visible
from grpo_core.cli.config import config
from grpo_core.cli.demo import demo
from grpo_core.cli.evaluate import evaluate
from grpo_core.cli.options import DEBUG, debug_option
from grpo_core.cli.plugin_commands import PluginGroup
from grpo_core.cli.plugins import plugins
from grpo_core.cli.preview import preview
from grpo_core.cli.push import push
from grpo_core.cli.train import INTERRUPTED, train
from grpo_core.errors import GRPOError


class ReportingGroup(PluginGroup):
    """Errors raised on purpose end as a message and their exit code, others as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GRPOError as error:
            text = "\n".join([f"Error: {error}", *getattr(error, "__notes__", ())])
            if ctx.meta.get(DEBUG):
                text = "".join(traceback.format_exception(error)).rstrip()
            # It repeats what configs and plugins say, which must not steer the terminal.
            click.echo(visible(text), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(
    cls=ReportingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion in your shell: eval "$(_GRPO_COMPLETE=bash_source grpo)" '
    "(or zsh_source, fish_source).",
)
@click.version_option(__version__, "-V", "--version", message="grpo-core %(version)s")
@debug_option
def grpo() -> None:
    """Post-train language models with GRPO; every part is a plugin.

    Start with `grpo demo`, which takes a few minutes on a CPU and needs no download.
    """


for command in (demo, preview, train, evaluate, push, config, plugins):
    grpo.add_command(command)
