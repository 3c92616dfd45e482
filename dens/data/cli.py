"""``dens data ...``: the commands that make, check and describe data sets.

A command is named in :data:`COMMANDS` by its dotted path and imported when it is called. Where it
raises a ValueError, the group prints that as one line, without traceback.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "convert": "dens.data.convert.frames:convert_command",
    "oc20": "dens.data.convert.oc20:oc20_command",
    "md17": "dens.data.convert.md17:md17_command",
    "stats": "dens.data.survey.stats:stats_command",
    "check": "dens.data.survey.check:check_command",
}


class LazyGroup(click.Group):
    """A group of commands given as ``name -> "module:attribute"``."""

    def __init__(self, *args, lazy: dict[str, str], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._lazy:
            return None
        module, attribute = self._lazy[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.ClickException("interrupted") from error
        except ValueError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Make data sets from what you have, describe them and check them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
