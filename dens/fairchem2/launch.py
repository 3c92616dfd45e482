"""Launch fairchem-core 2's own program, with its command line as it is.

A leading ``main.py`` is dropped, and the options and configs of fairchem-core 1.10 are refused with
one line that names the form that version 2 has for them. Runs of our units print what
`dens.runs.terminal` says, unless ``--verbose`` is given, and a mistake in their configs is a line
that names key and place, without the traceback of Hydra. All other runs start and print as without
dens.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from dens.hosts import fairchem_version
from dens.patching import replaced
from dens.process import refuse_torchrun
from dens.runs.terminal.output import VERBOSE, terminal_output
from dens.settings import ConfigError

NOISE = (  # warnings that tell a user nothing
    "'pin_memory' argument is set as true but no accelerator is found",
    "^To get the last learning rate computed by the scheduler",
    "^initialize_finetuning_model starting from checkpoint_location",
)

# options of fairchem-core 1.10, and what to write for them now
OPTIONS = {
    "--config-yml": "-c FILE",
    "--mode": "a config whose runner does it",
    "--num-gpus": "job.scheduler.ranks_per_node=N",
    "--num-nodes": "job.scheduler.num_nodes=N",
    "--submit": "job.scheduler.mode=SLURM",
    "--cpu": "job.device_type=CPU",
    "--amp": "runner.train_eval_unit.bf16=True",
    "--seed": "job.seed=N",
    "--debug": "job.debug=True",
    "--run-dir": "job.run_dir=FOLDER",
    "--identifier": "job.run_name=NAME",
    "--timestamp-id": "job.timestamp_id=ID",
    "--gp-gpus": "job.graph_parallel.group_size=N",
    "--print-every": "runner.train_eval_unit.print_every=N",
    "--checkpoint": "runner.train_eval_unit.model.checkpoint_location=FILE to fine-tune, or "
    "-c checkpoints/STEP/resume.yaml to resume",
}
_OVERRIDE = re.compile(r"--([^-=][^=]*=.*)", re.DOTALL)
_OF_1_10 = ("trainer", "includes")  # keys at the top of its configs
_FOR_DEVELOPERS = ("full_key:", "object_type=", "reference_type=")  # lines of OmegaConf's errors
# as traceback.format_exc writes the first of a chain of exceptions
_FIRST = re.compile(r"^dens\.settings\.ConfigError: (.*?)\n\n", re.DOTALL | re.MULTILINE)


def launch(argv: Sequence[str]) -> Any:
    """Run fairchem-core 2's program on the arguments of a command line.

    Raises:
        ConfigError: an option or a config of fairchem-core 1.10, or a mistake in our settings.
    """
    if "--verbose" in argv:
        os.environ[VERBOSE] = "1"  # for ranks and jobs too
    refuse_options(argv)
    if path := _config_of(argv):
        refuse_config(path)
    argv = [argument for argument in argv if argument != "--verbose"]
    from fairchem.core import _cli

    sys.argv = [sys.argv[0], *argv]
    stock = _cli.get_hydra_config_from_yaml
    try:
        with ExitStack() as output:

            def read_config(path: str, overrides: list[str]) -> Any:
                try:
                    config = stock(path, overrides)
                except Exception as error:
                    if reads_ours(path):
                        raise ConfigError(describe(path, error)) from error
                    raise
                if is_ours(config):
                    refuse_unknown(config)
                    refuse_torchrun("job.scheduler.ranks_per_node=N")
                    output.enter_context(output_of_run(config))
                return config

            with replaced(_cli, get_hydra_config_from_yaml=read_config):
                return _cli.main()
    except Exception as error:
        if lines := find_config_error(error):
            raise ConfigError(lines) from error
        raise


def is_ours(config: Any) -> bool:
    """Whether a config trains one of our units, or a subclass."""
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    target = OmegaConf.select(config, "runner.train_eval_unit._target_")
    if not isinstance(target, str) or target.startswith("fairchem."):
        return False
    try:
        unit = get_class(target)
    except Exception:  # a function, or nothing: the runner tells it
        return False
    from dens.fairchem2.train.monitored import MonitoredSteps

    return issubclass(unit, MonitoredSteps)


def refuse_unknown(config: Any) -> None:
    """Refuse keys of the section ``runner`` that what it builds does not know.

    Raises:
        ConfigError: with a line for each, its place and the nearest known key.
    """
    from omegaconf import OmegaConf

    from dens.fairchem2.check.parameters import find_problems

    if problems := find_problems(OmegaConf.to_container(config.runner, resolve=True)):
        raise ConfigError("\n".join(problems))


def reads_ours(path: str) -> bool:
    """Whether a config file, without overrides, trains one of our units, or names them at least."""
    from fairchem.core._cli import get_hydra_config_from_yaml

    try:
        return is_ours(get_hydra_config_from_yaml(path, []))
    except Exception:  # the error is in the file
        return Path(path).is_file() and "dens.fairchem2" in Path(path).read_text(encoding="utf-8")


def describe(path: str | Path, error: Exception) -> str:
    """Describe in one line why Hydra, OmegaConf or YAML cannot read a config."""
    message = str(error).strip().partition("\n\n")[0]
    lines = [line.strip() for line in message.splitlines()]
    told = [line for line in lines if not line.startswith(_FOR_DEVELOPERS)]
    return f"{path}: {' '.join(told) or type(error).__name__}"


@contextmanager
def output_of_run(config: Any) -> Iterator[None]:
    """Print for the user from here on, and in the ranks that this process starts."""
    from fairchem.core.launchers import slurm_launch

    with (
        terminal_output(config.job.metadata.log_dir, NOISE),
        replaced(slurm_launch, runner_wrapper=run_rank),
    ):
        yield


def run_rank(config: Any, *run_type: Any) -> None:
    """Run one rank, in this process or a spawned one."""
    from fairchem.core.launchers.slurm_launch import SlurmSPMDProgram

    with terminal_output(config.job.metadata.log_dir, NOISE):
        SlurmSPMDProgram()(config, *run_type)


def refuse_options(argv: Sequence[str]) -> None:
    """Refuse options of fairchem-core 1.10, and overrides with its two dashes.

    Raises:
        ConfigError: with a line for each, that says what to write.
    """
    lines = []
    for argument in argv:
        name = argument.partition("=")[0]
        if name in OPTIONS:
            lines.append(
                f"{name} is an option of fairchem-core 1.10, and {fairchem_version()} is "
                f"installed: write {OPTIONS[name]}"
            )
        elif name != "--config" and (override := _OVERRIDE.fullmatch(argument)):
            lines.append(
                f"{argument}: since fairchem-core 2, overrides have no dashes: {override[1]}"
            )
    if lines:
        raise ConfigError("\n".join(lines))


def _config_of(argv: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-c", "--config")
    try:
        return parser.parse_known_args(argv)[0].config
    except argparse.ArgumentError:  # fairchem's parser tells it
        return None


def refuse_config(path: str | Path) -> None:
    """Refuse a config of fairchem-core 1.10, and one whose defaults would not be found.

    Raises:
        ConfigError: names the file, and what to do.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # fairchem's program tells it
        return
    if not isinstance(config, Mapping):
        return
    found = [f"{key}:" for key in _OF_1_10 if key in config]
    if found and "runner" not in config:
        raise ConfigError(
            f"{path} is a config for fairchem-core 1.10 (it has {' and '.join(found)}), and "
            f"{fairchem_version()} is installed: configs/fairchem2 has configs for it"
        )
    defaults = [name for name in config.get("defaults") or () if name != "_self_"]
    if defaults and str(path).endswith(".yml"):
        raise ConfigError(
            f"{path}: rename it to {Path(path).with_suffix('.yaml').name}: fairchem-core copies a "
            ".yml into a temporary folder, where its defaults are not found"
        )


def find_config_error(error: BaseException) -> str | None:
    """Find the lines of a `ConfigError` among the causes of an exception, or in a rank's report."""
    for cause in _causes(error):
        if isinstance(cause, ConfigError):
            return str(cause)
        failures = getattr(cause, "failures", None)  # torch's ChildFailedError: by rank
        for failure in (failures or {}).values():
            message = failure.message
            report = message.get("extraInfo", {}) if isinstance(message, dict) else {}
            if found := _FIRST.search(report.get("py_callstack", "")):
                return found[1]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
