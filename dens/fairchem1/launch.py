"""Launch training with the ``main`` of fairchem-core 1.10, in which some names are replaced.

:func:`launch` replaces these globals of ``fairchem.core._cli`` while its ``main`` runs:

``build_config``, ``create_grid``
    Read the config (or the sweep) as fairchem does, give each run a unique id, and refuse mistakes
    before a process is spawned or a job submitted.
``Runner``, ``runner_wrapper``
    Entry points of submitted jobs and spawned ranks, which import them by name. Since they live
    here, those processes import ``dens`` before fairchem, as this one does.
``LaunchConfig``
    Uses a free port: with fairchem's fixed one, two runs on a machine share a rendezvous.
``new_trainer_context``
    While a rank runs: prints the header of the run, and its table at the end.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import datetime
import functools
import itertools
import logging
import os
import re
import secrets
import signal
from pathlib import Path
from typing import Any, NoReturn

import torch
from fairchem.core import _cli
from fairchem.core.common.flags import Flags
from submitit import AutoExecutor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dens.fairchem1.checkpoints.trained_settings import adopt_settings
from dens.fairchem1.config.inputs import check_inputs, keep_wandb_offline
from dens.fairchem1.config.read import as_config_error
from dens.fairchem1.config.sections import check_needed
from dens.fairchem1.config.settle import settle
from dens.fairchem1.data.safe_lmdb import use_safe_formats
from dens.fairchem1.describe_run import NOISE, announcing, output_of_run
from dens.fairchem1.train.logger import keep_logs
from dens.patching import replaced
from dens.process import refuse_torchrun
from dens.runs.terminal.output import VERBOSE, terminal_output
from dens.settings import ConfigError

_OVERRIDE = re.compile(r"(--)?[^-.=]+(\.[^.=]+)*=[^=]*", re.DOTALL)
_build, _grid = _cli.build_config, _cli.create_grid  # as they are when ours stand in for them
_NOT_IN_IDS = "/\\#?%:"  # W&B refuses them
_LONGEST_ID = 100  # W&B takes 128, with the time that is put before an identifier
_STOPPED = 128 + signal.SIGTERM  # the status of a rank that was asked to stop
_serial = itertools.count(secrets.randbits(16))


def parse_args(
    argv: list[str], program: str = "fairchem", epilog: str = ""
) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into fairchem's own options and overrides of the config.

    Beyond what fairchem accepts, ``--config`` means ``--config-yml`` and ``--mode`` is optional.
    ``program`` and ``epilog`` are for the help, with which ``--help`` exits.

    Raises:
        ConfigError: an option that is unknown or wrong, an override without one ``=``.
    """
    parser = Flags().get_parser()
    parser.prog, parser.epilog, parser.error = program, epilog, _refuse
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = f"{program} --config FILE [options] [--section.key=value ...]"
    parser.description = (
        "Train on fairchem-core 1.10. --config is short for --config-yml; --mode is train by\n"
        "default; --section.key=value changes the config, as in --optim.dens.sigma=0.15."
    )
    parser.set_defaults(mode="train")
    parser.add_argument(
        "--quiet", action="store_true", help="No progress bars, no lines of training metrics"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="Print fairchem's own lines, which are in host.log"
    )
    argv = [re.sub(r"^--config(?==|$)", "--config-yml", arg) for arg in argv]
    args, overrides = parser.parse_known_args(argv)
    for override in overrides:
        if not _OVERRIDE.fullmatch(override):
            _refuse(
                f"{override!r} is neither an option of {program} nor an override of the config, "
                "which is written --section.key=value, with one '='"
            )
    _check_options(args)
    if args.verbose:
        os.environ[VERBOSE] = "1"  # for ranks and jobs too
    return args, overrides


def _check_options(args: argparse.Namespace) -> None:
    """Refuse values that would end the run later, with a traceback."""
    if args.num_gpus < 1:
        _refuse(f"--num-gpus is the number of ranks and must be at least 1, got {args.num_gpus}")
    for name in ("num_nodes", "print_every"):
        if (value := getattr(args, name)) < 1:
            _refuse(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 <= args.seed < 2**32:
        _refuse(f"--seed must be from 0 to {2**32 - 1}, got {args.seed}")
    ranks, shared = args.num_nodes * args.num_gpus, args.gp_gpus
    if shared is not None and (shared < 1 or ranks % shared):
        _refuse(f"--gp-gpus must divide the number of ranks, {ranks}, got {shared}")
    for name in ("timestamp_id", "identifier"):
        value, option = getattr(args, name) or "", f"--{name.replace('_', '-')}"
        if found := sorted(set(value) & set(_NOT_IN_IDS)) + ["a line break"] * ("\n" in value):
            _refuse(
                f"{option} names folders and the run in W&B, and must have none of "
                f"{' '.join(_NOT_IN_IDS)}, got {' '.join(found)} in {value!r}"
            )
        if value != value.strip() or value in (".", "..") or len(value) > _LONGEST_ID:
            _refuse(
                f"{option} must have at most {_LONGEST_ID} characters, none of them a blank at an "
                f"end, and must not be . or .., got {value!r}"
            )


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message)


def new_timestamp_id(identifier: str = "") -> str:
    """Make a unique id of a run and its folders: time, four hex digits and identifier, if any.

    fairchem's own ids, float32 times, are equal for runs that start within about two minutes.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    # counted on from a random start: the ids of one process differ for certain
    parts = [now, f"{next(_serial) % 2**16:04x}", identifier]
    return "-".join(part for part in parts if part)


class Runner(_cli.Runner):
    """Runner of one rank, with which a requeued job starts again too."""

    def __call__(self, config: dict[str, Any]) -> None:
        """Run this process's rank."""
        if config["submit"] and os.environ.get("SLURM_PROCID", "0") == "0":
            keep_wandb_offline(config)  # this machine may reach less than the one it came from
        if config["submit"] and "SLURM_JOB_ID" not in os.environ:
            # submitit runs the job on this machine; fairchem would look for its rank in SLURM only
            config = {**config, "submit": False}
        with (
            output_of_run(config) as output,
            keep_logs(),
            replaced(_cli, new_trainer_context=announcing(output)),
        ):
            super().__call__(config)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Save on preemption, and return to submitit how to resume."""
        delayed = super().checkpoint(*args, **kwargs)
        delayed.function = type(self)()
        return delayed


def run_rank(config: dict[str, Any]) -> None:
    """Run one rank, in this process or a spawned one."""
    Runner()(config)


def launch(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train, validate, predict or relax (``args.mode``), as fairchem's ``main`` does.

    Raises:
        ConfigError: a mistake of the user, found here or by a rank; torchrun.
        SystemExit: with the report of a spawned rank that failed; or with status 143 after SIGTERM,
            when the run has saved.
    """
    refuse_torchrun("--num-gpus N")
    ours = {
        "build_config": read_config,
        "create_grid": _create_grid,
        "Runner": Runner,
        "runner_wrapper": run_rank,
        "LaunchConfig": functools.partial(_cli.LaunchConfig, rdzv_endpoint="localhost:0"),
    }
    try:
        with terminal_output(noise=NOISE), replaced(_cli, **ours):
            _cli.main(args, overrides)
    except SignalException as error:  # the ranks have had it too, and saved
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode == _STOPPED:
            raise SystemExit(_STOPPED) from None
        report = failure.message  # a mapping where the rank left a traceback
        text = report if isinstance(report, str) else report["message"]
        if text.startswith("ConfigError: "):
            raise ConfigError(text.removeprefix("ConfigError: ")) from None
        raise SystemExit(str(error)) from None


def read_config(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Read and settle the config of a run, with its device and id, from :func:`parse_args`.

    Raises:
        ConfigError: it cannot be read or has mistakes, or its data or checkpoint is missing.
    """
    stays_here = not args.submit or AutoExecutor.which() == "local"
    if args.submit and stays_here and args.num_gpus > 1:
        _refuse(f"--submit without SLURM runs one rank, not --num-gpus {args.num_gpus}")
    without_gpu = stays_here and not args.cpu and not torch.cuda.is_available()
    args.cpu |= without_gpu
    args.timestamp_id = args.timestamp_id or new_timestamp_id(args.identifier)
    with as_config_error(args.config_yml):
        config = _build(args, overrides)
    if args.quiet:
        logger = config.get("logger", "wandb")
        logger = logger if isinstance(logger, dict) else {"name": logger}
        config |= {"logger": {**logger, "quiet": True}, "hide_eval_progressbar": True}
    if not (args.submit and args.sweep_yml):  # else each run of the sweep is settled
        config = _settle(config)
    if without_gpu:
        logging.info("There is no CUDA device: running on the CPU with gloo, as --cpu does.")
    return config


def _create_grid(base: dict[str, Any], sweep_yml: Path) -> list[dict[str, Any]]:
    # fairchem looks for MutableMapping where it stood until Python 3.10
    moved = {"MutableMapping": collections.abc.MutableMapping}
    with as_config_error(sweep_yml), replaced(collections, **moved):
        configs = _grid(base, sweep_yml)
    for config in configs:
        run = config["identifier"].removeprefix(base["identifier"])  # _run0, _run1, ...
        config["timestamp_id"] = base["timestamp_id"] + run
    return [_settle(config) for config in configs]


def _settle(config: dict[str, Any]) -> dict[str, Any]:
    try:
        config = settle(config)
        check_inputs(config)
        config = adopt_settings(config, logging.warning)
        check_needed(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _read_safely(config)
    keep_wandb_offline(config)
    return config


def _read_safely(config: dict[str, Any]) -> None:
    """Make stock trainers, too, read LMDB files without running code from them."""
    splits = config.get("dataset")
    if isinstance(splits, dict):
        keys = {"train": "dataset", "val": "val_dataset", "test": "test_dataset"}
        keys["relax"] = "relax_dataset"
        use_safe_formats({keys[name]: split for name, split in splits.items() if name in keys})
