"""A command of `grpo`."""

import click


@click.command()
@click.option("--name", default="you", help="Whom to greet.")
def greet(name):
    """Say hello."""
    click.echo(f"hello {name}")
