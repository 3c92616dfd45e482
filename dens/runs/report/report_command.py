"""``dens report``: compare runs in one HTML file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="File.",
)
def report_command(runs: tuple[str, ...], out: Path) -> None:
    """Write curves, errors, figures and settings of runs as one HTML file, and as PNGs.

    RUN is a log folder or the id of a run in ./logs; the others are compared with the first one.
    """
    from dens.runs.report.write import write_report

    for path in write_report(runs, out):
        click.echo(path)
