"""The commands ``dens recipes`` and ``dens recipes copy``."""

from __future__ import annotations

from pathlib import Path

import click

from dens.install.recipes import copy_recipe, find_recipe, list_recipes

_HOSTS = {1: "fairchem-core 1.10", 2: "fairchem-core 2"}


@click.group("recipes", invoke_without_command=True)
@click.pass_context
def recipes_command(ctx: click.Context) -> None:
    """List the recipes, which are configs to train with.

    Origin is "published"; "adapted" for values that were published with another model; "ours" for
    values that were not published. The baseline of a recipe has the origin of that recipe.
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = [("recipe", "method", "backbone", "host", "origin", "training data")]
    for recipe in list_recipes():
        host = _HOSTS[recipe.host]
        rows.append((recipe.name, recipe.method, recipe.backbone, host, recipe.origin, recipe.data))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@recipes_command.command("copy")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Overwrite files that have other contents.")
def copy_command(name: str, folder: Path, force: bool) -> None:
    """Copy the recipe NAME, with the files that it includes, to FOLDER.

    Files keep their comments and their places: oc20/eqv2_dens becomes FOLDER/oc20/eqv2_dens.yml.
    """
    copies = copy_recipe(find_recipe(name), folder, force=force)
    for path, written in copies.items():
        click.echo(f"{path}{'' if written else ': there already, left as it is'}")
    click.echo(f"train: fairchem --config {next(iter(copies))}")
