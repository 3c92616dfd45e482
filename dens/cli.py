"""The program behind ``fairchem``, ``dens``, ``python -m dens.cli`` and ``python main.py``.

A first word that names a command runs that command. Everything else is fairchem's own command line,
which :mod:`dens.fairchem1.launch` runs. Neither torch nor fairchem is imported before a command
needs it.

Exit status: 2 after an error that the user can mend, printed as ``error: ...`` without traceback;
1 where ``dens data check`` finds errors in data, or a rank failed; 130 after an interrupt.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from dens.settings import ConfigError

_OVERRIDES = {"ignore_unknown_options": True}  # such as --optim.dens.sigma=0.15
_INSTALL = "pip install 'fairchem-dens[fairchem1]'"
_PATH = click.Path(path_type=Path)
_COUNT, _SPLIT = click.IntRange(min=1), click.Choice(["val", "test"])


def open_config(path: Path) -> Any:
    """Open the data of a training config; commands of ``dens data`` get this as their object."""
    from dens.fairchem1.data.datasets import ConfigReader

    return ConfigReader(path)


class LazyGroup(click.Group):
    """Group of commands that are imported when they are called.

    Args:
        lazy: ``{name: ("module:attribute", help line)}``; one without help line is hidden.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        settings = {"obj": open_config, "help_option_names": ["--help", "-h"]}
        super().__init__(*args, context_settings=settings, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context | None = None) -> list[str]:
        return [*self.commands, *(name for name, (_, line) in self.lazy.items() if line)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return self.commands.get(name)
        module, attribute = self.lazy[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def help_lines(self) -> list[tuple[str, str]]:
        """List the commands, each with one line of help."""
        lines = {name: line for name, (_, line) in self.lazy.items()}
        lines |= {name: first_line(command) for name, command in self.commands.items()}
        return [(name, lines[name]) for name in self.list_commands()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.help_lines())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError:  # of several lines, maybe
            raise
        except (OSError, ValueError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error


def first_line(command: click.Command) -> str:
    """Return the first paragraph of a command's help."""
    return " ".join(command.help.split("\n\n")[0].split())


_DEMO = "dens.data.demo:demo_command"
_DOWNLOAD = "dens.fairchem1.data.download:download_command"


@click.group(
    cls=LazyGroup,
    lazy={
        "demo-data": (_DEMO, ""),
        "download-data": (_DOWNLOAD, ""),
        "relax": (
            "dens.fairchem1.morered.relax_command:relax_command",
            "Relax FILES by denoising.",
        ),
        "dashboard": ("dens.runs.dashboard:dashboard_command", "Save a W&B workspace for runs."),
    },
)
def commands() -> None:
    """Train with DeNS, and look after data, runs and checkpoints.

    `dens --config FILE` trains; `fairchem --help` shows the options of training.
    """


@commands.group(
    "data",
    cls=LazyGroup,
    lazy={
        "convert": (
            "dens.data.convert.frames:convert_command",
            "Convert SOURCES, files or folders that ASE reads, to LMDB.",
        ),
        "oc20": (
            "dens.data.convert.oc20:oc20_command",
            "Convert OC20's S2EF download in FOLDERS to the LMDB folder OUT.",
        ),
        "md17": (
            "dens.data.convert.md17:md17_command",
            "Convert a MOLECULE of MD17, rMD17 or sGDML's CCSD(T) sets to LMDB.",
        ),
        "qm7x": ("dens.data.equilibria.qm7x:qm7x_command", "Convert QM7-X's equilibria to LMDB."),
        "qm9": ("dens.data.equilibria.qm9:qm9_command", "Convert QM9's equilibria to LMDB."),
        "stats": (
            "dens.data.survey.stats:stats_command",
            "Print the statistics of the LMDB FOLDER as YAML that a config can include.",
        ),
        "check": (
            "dens.data.survey.check:check_command",
            "Look for faults in the LMDB FOLDER, or in every split in it.",
        ),
        "demo": (_DEMO, "Make the data of the demo in the folder OUT."),
        "download": (
            _DOWNLOAD,
            "Download OC20: fairchem's download_data script, with its options.",
        ),
    },
    invoke_without_command=True,
)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Make data sets from what you have, describe them and check them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@commands.command("check", context_settings=_OVERRIDES)
@click.argument("config", type=_PATH)
@click.option("--num-gpus", default=1, show_default=True, help="Planned ranks.", type=_COUNT)
@click.option("--checkpoint", type=_PATH, help="Checkpoint from which the run starts.")
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=300,
    show_default=True,
    help="Structures to read of each split; 0: all.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(ctx, config, num_gpus, checkpoint, sample, overrides) -> None:
    """Check in seconds what would end or spoil a run of CONFIG.

    Settings, data, labels, elements, normalisers, one training step, memory, number of steps. The
    exit status is 2 where there are errors. OVERRIDES change the config, as in training.
    """
    from dens.fairchem1.check.command import check_command

    options = {"num_gpus": num_gpus, "checkpoint": checkpoint, "sample": sample}
    if not check_command(config, **options, overrides=list(overrides)):
        ctx.exit(2)


@commands.command("evaluate", context_settings=_OVERRIDES)
@click.option("--config", required=True, type=_PATH, help="Training config.")
@click.option("--checkpoint", required=True, type=_PATH, help="Its weights.")
@click.option("--split", default="val", show_default=True, type=_SPLIT, help="Its data.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def evaluate(config: Path, checkpoint: Path, split: str, overrides: tuple[str, ...]) -> None:
    """Measure the S2EF and denoising errors of a checkpoint.

    OVERRIDES change the config, as in training: --optim.dens.sigma=0.15
    """
    from dens.fairchem1.evaluate import evaluate_command

    evaluate_command(config, checkpoint, split=split, overrides=list(overrides))


@commands.command("export")
@click.argument("checkpoint", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="File to write.")
@click.option("--raw", is_flag=True, help="Take the weights as trained, not their average (EMA).")
@click.option("--safetensors", is_flag=True, help="Write the bare weights in that format.")
def export(checkpoint: Path, out: Path, raw: bool, safetensors: bool) -> None:
    """Write CHECKPOINT as stock EquiformerV2, which runs without dens."""
    from dens.fairchem1.checkpoints.export import export_checkpoint

    click.echo(export_checkpoint(checkpoint, out, raw=raw, bare=safetensors))


@commands.command("inspect")
@click.argument("checkpoint", type=_PATH)
def inspect(checkpoint: Path) -> None:
    """Show the contents of CHECKPOINT, without running code from the file."""
    from dens.fairchem1.checkpoints.inspect import inspect_checkpoint

    click.echo(inspect_checkpoint(checkpoint))


@commands.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", default="report.html", show_default=True, type=_PATH, help="File.")
def report(runs: tuple[str, ...], out: Path) -> None:
    """Write curves, errors, figures and settings of runs as one HTML file, and as PNGs.

    RUN is a log folder or the id of a run in ./logs; the others are compared with the first one.
    """
    from dens.runs.report.write import write_report

    for path in write_report(runs, out):
        click.echo(path)


def main(argv: list[str] | None = None) -> None:
    """Run the program on ``argv`` (default: the arguments of this process).

    Raises:
        SystemExit: with the exit status, see above.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and Path(argv[0]).name == "main.py":  # as in `fairchem main.py --config FILE`
        del argv[0]
    try:
        program = Path(sys.argv[0]).name
        _run(argv, "dens" if program == "cli.py" else program)
    except ConfigError as error:
        _fail(str(error))
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except ImportError as error:
        version = fairchem_version()
        other = version.split(".")[0] not in ("", "1")  # whose dependencies are others
        if not other and not (error.name or "").startswith("fairchem"):
            raise
        installed = f", and {version} is installed" * other
        _fail(f"this needs fairchem-core 1.10{installed}: {_INSTALL} ({error})")


def _fail(message: str, status: int = 2) -> None:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(status)


def _run(argv: list[str], program: str) -> None:
    version = fairchem_version()
    if program == "fairchem" and version.split(".")[0] not in ("", "1"):
        from fairchem.core._cli import main as main_of_fairchem

        sys.exit(main_of_fairchem())
    first = argv[0] if argv else ""
    ours = (*commands.lazy, *commands.commands)
    if program not in ("fairchem", "main.py"):
        ours += ("--help", "-h")
    if first in ours:
        # not standalone: errors come to main(), which prints them like all others
        sys.exit(commands.main(argv, prog_name=program, standalone_mode=False))
    if first and not first.startswith("-") and "=" not in first:
        raise click.UsageError(
            f"unknown command {first!r}: the commands are {', '.join(commands.list_commands())}; "
            f"training begins with an option: {program} --config FILE (see fairchem --help)"
        )
    if version.split(".")[0] not in ("", "1"):
        raise click.ClickException(
            f"training needs fairchem-core 1.10, and {version} is installed: {_INSTALL}"
        )
    from dens.fairchem1.launch import launch, parse_args

    rows = [f"  {name:<16}{line}" for name, line in commands.help_lines()]
    epilog = f"commands ({program} COMMAND --help):\n" + "\n".join(rows)
    launch(*parse_args(argv, program, epilog=epilog))


def fairchem_version() -> str:
    """Version of the installed fairchem-core; empty where there is none."""
    try:
        return metadata.version("fairchem-core")
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    from dens.cli import main  # the module that commands and spawned ranks import

    main()
