"""Command ``dens data download``, which runs the download script of fairchem-core 1.10."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click
from fairchem.core import scripts


@click.command("download", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def download_command(arguments: tuple[str, ...]) -> None:
    """Download OC20: fairchem's download_data script, with its options."""
    # in this process, because the script imports torch_scatter, which dens may have supplied
    folder = Path(scripts.__file__).parent
    sys.path.insert(0, str(folder))  # the script imports its neighbours by their bare names
    sys.argv[:] = ["dens data download", *arguments]
    runpy.run_path(str(folder / "download_data.py"), run_name="__main__")
