"""The program behind ``fairchem``, ``dens`` and ``python main.py``.

A first word that names a command of :data:`commands` runs that command. Everything else is
fairchem's own command line, which :mod:`dens.fairchem1.launch` runs. Commands import what they need
when they run, so that a new one costs the others nothing.

Errors the user can mend are printed as ``error: ...``, without traceback, with exit status 2.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click

from dens.settings import ConfigError

PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.group()
def commands() -> None:
    """The commands beside training."""


@commands.command("demo-data")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same data.")
def demo_data(out: Path, seed: int) -> None:
    """Make the data of the demo in the folder OUT."""
    from dens.data.demo import make_demo_data

    def show(split: str, done: int, total: int) -> None:
        click.echo(f"\r{split}: {done} of {total} frames", nl=done >= total, err=True)

    try:
        click.echo(make_demo_data(out, seed, progress=show).table())
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@commands.command("download-data", context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def download_data(arguments: tuple[str, ...]) -> None:
    """Download OC20: fairchem's download_data script, with its options."""
    # Run in this process, because the script imports torch_scatter, which dens may have supplied,
    # and its neighbours by their bare names.
    from fairchem.core import scripts

    folder = Path(scripts.__file__).parent
    sys.path.insert(0, str(folder))
    sys.argv = ["download-data", *arguments]
    runpy.run_path(str(folder / "download_data.py"), run_name="__main__")


@commands.command("data", context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def data(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Make, describe and check data sets: convert, oc20, md17, stats, check."""
    from dens.data.cli import data as group

    ctx.exit(group.main([*arguments], prog_name=ctx.command_path, standalone_mode=False) or 0)


@commands.command("evaluate", context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(path_type=Path), help="Training config.")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Its weights.")
@click.option("--split", default="val", show_default=True, help="A split of the config's dataset.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def evaluate(config: Path, checkpoint: Path, split: str, overrides: tuple[str, ...]) -> None:
    """Measure the S2EF and denoising errors of a checkpoint.

    OVERRIDES change the config, as in training: --optim.dens.sigma=0.15
    """
    from dens.fairchem1.evaluate import evaluate_command

    evaluate_command(config, checkpoint, split=split, overrides=list(overrides))


@commands.command("check", context_settings={"ignore_unknown_options": True})
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--num-gpus", default=1, show_default=True, help="Ranks of the run that is meant.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="What the run starts from.")
@click.option("--sample", default=300, show_default=True, help="Structures to read of each split.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(ctx, config, num_gpus, checkpoint, sample, overrides) -> None:
    """Look for what would end or spoil a run of CONFIG, in seconds.

    Settings, data, labels, elements, normalisers, one training step, memory, number of steps. The
    exit status is 2 where there are errors. OVERRIDES change the config, as in training.
    """
    from dens.fairchem1.check.command import check_command

    options = {"num_gpus": num_gpus, "checkpoint": checkpoint, "sample": sample}
    if not check_command(config, **options, overrides=list(overrides)):
        ctx.exit(2)


@commands.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--raw", is_flag=True, help="Take the weights as trained, not their average (EMA).")
@click.option("--safetensors", is_flag=True, help="Write the bare weights in that format.")
def export(checkpoint: Path, out: Path, raw: bool, safetensors: bool) -> None:
    """Write CHECKPOINT as stock EquiformerV2, which runs without dens."""
    from dens.fairchem1.checkpoints.export import export_checkpoint

    try:
        click.echo(export_checkpoint(checkpoint, out, raw=raw, bare=safetensors))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@commands.command("inspect")
@click.argument("checkpoint", type=click.Path(path_type=Path))
def inspect(checkpoint: Path) -> None:
    """Show what CHECKPOINT holds; runs no code from the file."""
    from dens.fairchem1.checkpoints.inspect import inspect_checkpoint

    try:
        click.echo(inspect_checkpoint(checkpoint))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@commands.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out", default="report.html", show_default=True, type=click.Path(path_type=Path), help="File."
)
def report(runs: tuple[str, ...], out: Path) -> None:
    """Write curves, errors, figures and settings of runs as one HTML file, and as PNGs.

    RUN is a log folder or the id of a run in ./logs; the first one is what the others are compared
    with.
    """
    from dens.runs.report import write_report

    try:
        for path in write_report(runs, out):
            click.echo(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@commands.command("dashboard")
@click.option("--entity", required=True, help="User or team of W&B.")
@click.option("--project", required=True, help="Their project.")
@click.option("--name", default="DeNS", show_default=True, help="Of the saved view.")
@click.option("--baseline", help="Id of the run that others are compared with.")
@click.option("--dry-run", is_flag=True, help="Print what would be saved; asks no server.")
def dashboard(entity: str, project: str, name: str, baseline: str | None, dry_run: bool) -> None:
    """Save a W&B workspace with panels for DeNS runs."""
    from dens.runs.dashboard import as_json, make_workspace, save_workspace

    try:
        workspace = make_workspace(entity, project, name, baseline)
        click.echo(as_json(workspace) if dry_run else save_workspace(workspace))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    """Run the program on ``argv`` (default: the arguments of this process).

    Raises:
        SystemExit: 2 after an error that the user can mend, 1 where a rank failed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and Path(argv[0]).name == "main.py":  # as in `fairchem main.py --config FILE`
        del argv[0]
    try:
        _run(argv)
    except (ConfigError, click.ClickException) as error:
        message = str(error) if isinstance(error, ConfigError) else error.format_message()
        for line in message.splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(2)


def _run(argv: list[str]) -> None:
    program = Path(sys.argv[0]).name
    first = argv[0] if argv else ""
    if first in commands.commands:
        # not standalone: errors come to main(), which prints them like all others
        sys.exit(commands.main(argv, prog_name=program, standalone_mode=False))
    if first and not first.startswith("-") and "=" not in first:
        raise click.UsageError(
            f"unknown command {first!r}: the commands are {', '.join(commands.commands)}; "
            f"training begins with an option: {program} --config FILE (see {program} --help)"
        )
    try:
        from dens.fairchem1.launch import launch, parse_args
    except ImportError as error:
        if not (error.name or "").startswith("fairchem"):
            raise
        raise click.ClickException(
            f"training needs fairchem-core 1.10: pip install 'fairchem-dens[fairchem1]' ({error})"
        ) from error
    launch(*parse_args(argv, program, epilog=_list_commands(program)))


def _list_commands(program: str) -> str:
    rows = [f"  {name:<16}{cmd.get_short_help_str(70)}" for name, cmd in commands.commands.items()]
    return f"commands ({program} COMMAND --help):\n" + "\n".join(rows)
