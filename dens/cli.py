"""The program behind ``fairchem``, ``dens``, ``python -m dens.cli`` and ``python main.py``.

A first word that names a command runs that command. Everything else is fairchem's own command line,
which the ``launch`` of the adapter to the installed version runs: `dens.fairchem1` or
`dens.fairchem2`. Neither torch nor fairchem is imported before a command needs it.

Exit status: 2 after an error that the user can mend, printed as ``error: ...`` without traceback;
1 where ``dens data check`` finds errors in data, or a rank failed; 130 after an interrupt.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dens.hosts import explain_missing, fairchem_major, require_major
from dens.runs.terminal.output import terminal_output
from dens.settings import ConfigError

_OVERRIDES = {"ignore_unknown_options": True}  # such as --optim.dens.sigma=0.15
_PATH = click.Path(path_type=Path)
_COUNT, _SPLIT = click.IntRange(min=1), click.Choice(["val", "test"])
_SAMPLE = "Structures to read of each split; 0: all."
_FAIRCHEM1 = "dens.fairchem1."  # modules of commands that only fairchem-core 1.10 has


_OF_HOST = {  # what both adapters have, by the major version of fairchem-core
    "check": (
        "dens.fairchem1.check.command:check_command",
        "dens.fairchem2.check.examine:check_command",
    ),
    "evaluate": (
        "dens.fairchem1.evaluate:evaluate_command",
        "dens.fairchem2.evaluate:evaluate_command",
    ),
    "inspect": (
        "dens.fairchem1.checkpoints.inspect:inspect_checkpoint",
        "dens.fairchem2.inspect:inspect_checkpoint",
    ),
    "reader": (
        "dens.fairchem1.data.datasets:ConfigReader",
        "dens.fairchem2.check.datasets2:ConfigReader",
    ),
    "trainer": ("dens.fairchem1:DeNSTrainer", "dens.fairchem2:DeNSTrainEvalUnit"),
}


def of_host(what: str) -> Any:
    """Import one of `_OF_HOST` from the adapter to the installed fairchem-core."""
    return load(_OF_HOST[what][fairchem_major() == 2])


def load(path: str) -> Any:
    """Import ``module:attribute``."""
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


def open_config(path: Path) -> Any:
    """Open the data of a training config; commands of ``dens data`` get this as their object."""
    return of_host("reader")(path)


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
        path, _ = self.lazy[name]
        if path.startswith(_FAIRCHEM1):
            require_major(1, f"{ctx.command_path} {name}")
        return load(path)

    def help_lines(self) -> list[tuple[str, str]]:
        """List the commands, each with one line of help."""
        elsewhere = fairchem_major() not in (1, None)
        lines = {
            name: line + " (fairchem-core 1.10)" * (elsewhere and path.startswith(_FAIRCHEM1))
            for name, (path, line) in self.lazy.items()
        }
        lines |= {name: first_line(command) for name, command in self.commands.items()}
        return [(name, lines[name]) for name in self.list_commands()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.help_lines())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, BrokenPipeError):  # of several lines, maybe; click ends quietly
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
        "relax": (f"{_FAIRCHEM1}morered.relax_command:relax_command", "Relax FILES by denoising."),
        "export": (
            "dens.fairchem1.checkpoints.export:export_command",
            "Write CHECKPOINT as a stock model, which runs without dens.",
        ),
        "report": (
            "dens.runs.report.report_command:report_command",
            "Write curves, errors, figures and settings of runs as one HTML file, and as PNGs.",
        ),
        "recipes": (
            "dens.install.recipes_command:recipes_command",
            "List the recipes, which are configs to train with.",
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
            "Convert SOURCES, files or folders that ASE reads, to LMDB or aselmdb.",
        ),
        "oc20": (
            "dens.data.convert.oc20:oc20_command",
            "Convert OC20's S2EF download in FOLDERS to the folder OUT.",
        ),
        "md17": (
            "dens.data.convert.md17:md17_command",
            "Convert a MOLECULE of MD17, rMD17 or sGDML's CCSD(T) sets to LMDB.",
        ),
        "mptrj": ("dens.data.bulk.mptrj:mptrj_command", "Convert MPtrj's FILE to LMDB."),
        "qm7x": ("dens.data.equilibria.qm7x:qm7x_command", "Convert QM7-X's equilibria to LMDB."),
        "qm9": ("dens.data.equilibria.qm9:qm9_command", "Convert QM9's equilibria to LMDB."),
        "stats": (
            "dens.data.survey.stats:stats_command",
            "Print the statistics of FOLDER as YAML that a config can include.",
        ),
        "check": (
            "dens.data.survey.check:check_command",
            "Look for faults in FOLDER, or in every split in it.",
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
@click.option("--sample", default=300, show_default=True, type=click.IntRange(0), help=_SAMPLE)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(ctx, config, num_gpus, checkpoint, sample, overrides) -> None:
    """Check in seconds what would end or spoil a run of CONFIG.

    Settings, data, labels, elements, normalisers, one training step, memory, number of steps. The
    exit status is 2 where there are errors. OVERRIDES change the config, as in training.
    """
    options = {"num_gpus": num_gpus, "checkpoint": checkpoint, "sample": sample}
    if not of_host("check")(config, **options, overrides=list(overrides)):
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
    of_host("evaluate")(config, checkpoint, split=split, overrides=list(overrides))


@commands.command("inspect")
@click.argument("checkpoint", type=_PATH)
@click.option("--dataset", help="Of fairchem-core 2: print its scales as YAML for a config.")
def inspect(checkpoint: Path, dataset: str | None) -> None:
    """Show the contents of CHECKPOINT, without running code from the file."""
    click.echo(of_host("inspect")(checkpoint, dataset))


@commands.command("doctor")
def doctor() -> None:
    """Describe the installation, in lines to paste into a bug report."""
    for name, line in load("dens.install.doctor:describe")(lambda: of_host("trainer")):
        click.echo(f"{name + ':':<17}{line}")


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
        if not (error.name or "").startswith("fairchem"):
            raise
        _fail(explain_missing(error))


def _fail(message: str, status: int = 2) -> None:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(status)


def _run(argv: list[str], program: str) -> None:
    first = argv[0] if argv else ""
    ours = (*commands.lazy, *commands.commands)
    if program not in ("fairchem", "main.py"):
        ours += ("--help", "-h")
    if first in ours:
        with terminal_output():  # warnings, too, take a line each
            # not standalone: errors come to main(), which prints them like all others
            sys.exit(commands.main(argv, prog_name=program, standalone_mode=False))
    if fairchem_major() == 2:
        sys.exit(load("dens.fairchem2.launch:launch")(argv))
    if first and not first.startswith("-") and "=" not in first:
        raise click.UsageError(
            f"unknown command {first!r}: the commands are {', '.join(commands.list_commands())}; "
            f"training begins with an option: {program} --config FILE (see fairchem --help)"
        )
    from dens.fairchem1.launch import launch, parse_args

    rows = (f"\n  {name:<16}{line}" for name, line in commands.help_lines())
    epilog = f"commands ({program} COMMAND --help):" + "".join(rows)
    launch(*parse_args(argv, program, epilog=epilog))


if __name__ == "__main__":
    from dens.cli import main  # the module that commands and spawned ranks import

    main()
