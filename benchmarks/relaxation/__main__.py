"""Evaluate relaxation by denoising on relaxed structures, beside MMFF94 and GFN2-xTB.

    OMP_NUM_THREADS=1 python -m benchmarks.relaxation --data data/qm7/test --starts \
      --checkpoint FILE --baselines mmff94 gfn2 --baseline-every 10 --out result.json

Relaxed structures get noise, and may bring the structures that they were relaxed from; the model
removes it. Several checkpoints are taken as seeds of one model. Without any, baselines run alone.
The noise is a function of its level and of a structure's number in the data alone: all methods, and
all results in files, have the same starts. --table joins the results of several calls; what has the
same --name in them is a seed more. Times are process times, milliseconds for each structure.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import commit, hardware
from benchmarks.relaxation.baselines import BASELINES
from benchmarks.relaxation.figure import draw, relax_with_history
from benchmarks.relaxation.molecules import Starts, make_starts, read_set
from benchmarks.relaxation.score import run_baselines, run_model, same_at_start
from benchmarks.relaxation.speed import format_speed, measure_speed
from benchmarks.relaxation.table import format_files, format_result
from dens.fairchem1.morered.denoisers import NetworkDenoiser, load_denoiser
from dens.process import keep_freed_memory
from dens.relax.atoms.conversion import Limits
from dens.relax.config import RelaxSettings
from dens.settings import parse_settings

_SETTINGS = {  # fields of RelaxSettings, and what their values are
    "stop_level": int,
    "max_calls": int,
    "patience": int,
    "damping": float,
    "start_level": float,
    "batch_atoms": int,
}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.relaxation", description=__doc__.splitlines()[0]
    )
    add = found.add_argument
    add("--data", type=Path, help="LMDB folder of relaxed structures")
    add(
        "--checkpoint",
        type=Path,
        nargs="+",
        help="models; several are seeds of one; none: baselines alone",
    )
    add("--time-checkpoint", type=Path, nargs="+", help="their time networks, for as and itp")
    add("--name", default="denoising", help="of the model, in tables")
    add("--raw", action="store_true", help="weights as trained, not their average (EMA)")
    add("--noise", type=float, nargs="*", default=[0.1, 0.2, 0.3], help="Å  [0.1 0.2 0.3]")
    add("--starts", action="store_true", help="relax the field pos_start of the data too")
    add("--every", type=int, default=1, metavar="N", help="take every N-th structure")
    add("--baselines", nargs="+", choices=BASELINES, default=[], help="methods to compare with")
    add("--baseline-every", type=int, metavar="N", help="structures for baselines  [--every]")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--sampler", nargs="+", default=["direct"], help=f"{_about_setting('sampler')}  [direct]")
    for name, kind in _SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=_about_setting(name))
    add("--out", type=Path, help="JSON file")
    modes = found.add_mutually_exclusive_group()
    modes.add_argument("--table", type=Path, nargs="+", help="format stored results, and stop")
    modes.add_argument("--speed", action="store_true", help="only measure structures per second")
    modes.add_argument("--figure", type=Path, help="only draw the relaxations, to a PNG file")
    add("--rounds", type=int, default=3, help="of --speed  [3]")
    return found


def _about_setting(name: str) -> str:
    return RelaxSettings.model_fields[name].description.replace("%", "%%")


def read_settings(args: argparse.Namespace) -> list[RelaxSettings]:
    """Read the settings of relaxation from the command line, those of each sampler."""
    given = {name: getattr(args, name) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    return [parse_settings(RelaxSettings, {**given, "sampler": s}, "") for s in args.sampler]


def check(args: argparse.Namespace) -> None:
    """Refuse a command line that lacks something, or has values out of range.

    Raises:
        ValueError: one line that says what.
    """
    if args.data is None:
        raise ValueError("--data is missing")
    args.checkpoint = args.checkpoint or []
    if not args.checkpoint and (args.speed or args.figure or not args.baselines):
        raise ValueError("--checkpoint is missing")
    for name in ("every", "baseline_every", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    if bad := [sigma for sigma in args.noise if not 0 < sigma < math.inf]:
        raise ValueError(f"--noise must be > 0 (Å), got {bad[0]:g}")
    if not args.noise and not args.starts:
        raise ValueError("nothing to relax: give --noise or --starts")
    for name in ("checkpoint", "sampler"):
        if (args.speed or args.figure) and (n := len(getattr(args, name))) > 1:
            raise ValueError(f"--speed and --figure take one --{name}, got {n}")
    times = args.time_checkpoint
    if times is not None and len(times) != len(args.checkpoint):
        raise ValueError(
            f"--time-checkpoint needs one file for each --checkpoint, {len(args.checkpoint)}, got "
            f"{len(times)}"
        )
    for name in ("out", "figure"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"--{name}: there is no folder {path.parent}")


def load(args: argparse.Namespace) -> dict[str, NetworkDenoiser]:
    """Load the models, by the last parts of their paths."""
    times = args.time_checkpoint or [None] * len(args.checkpoint)
    found = {}
    for path, time_path in zip(args.checkpoint, times, strict=True):
        name = "/".join(path.resolve().parts[-2:])
        if name in found:
            raise ValueError(f"--checkpoint: two files are called {name}")
        found[name] = load_denoiser(
            path, time_path=time_path, raw=args.raw, cpu=args.device == "cpu", seed=args.seed
        )
    return found


def evaluate(
    args: argparse.Namespace, models: dict[str, NetworkDenoiser], starts: Sequence[Starts]
) -> dict[str, Any]:
    """Run models and baselines, and return the part of the result that holds figures."""
    several, step = read_settings(args), args.baseline_every or args.every
    how = {"step": step, "seed": args.seed, "device": args.device}
    runs = []
    for settings, (run, denoiser) in product(several, models.items()):
        name = f"{args.name}, {settings.sampler}" if len(several) > 1 else args.name
        found = run_model(denoiser, settings, starts, **how)
        runs.append({"name": name, "run": run, "raw": args.raw, **found})
    runs += run_baselines(args.baselines, starts, step)
    return {"same_at_start": same_at_start(starts, step), "runs": runs}


def run_modes(args: argparse.Namespace) -> None:
    """Load models and data, and do what the command line asks for."""
    models = load(args)
    data = read_set(args.data, args.every)
    first = next(iter(models.values()), None)
    limits = Limits(periodic=False) if first is None else Limits.of(first)
    starts = make_starts(data, args.noise, args.starts, args.seed, limits)
    result: dict[str, Any] = {"about": _about(args, data)}
    settings = read_settings(args)[0]
    if args.figure:
        ways = [relax_with_history(first, settings, one, args.seed) for one in starts]
        draw(ways).savefig(args.figure)
        print(f"{args.figure} is written")
        return
    if args.speed:
        result["speed"] = measure_speed(
            first,
            settings,
            starts[0],
            args.baselines,
            rounds=args.rounds,
            seed=args.seed,
            device=args.device,
        )
        print(f"{result['about']['hardware']}, {format_speed(result['speed'])}")
    else:
        result |= evaluate(args, models, starts)
        print(format_result(result))
    if args.out:
        args.out.write_text(json.dumps(_plain(result), indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    program = parser()
    args = program.parse_args(argv)
    try:
        if args.table:
            print(format_files(args.table))
            return
        check(args)
        read_settings(args)
        if args.device == "cpu":
            torch.set_num_threads(1)
            keep_freed_memory()
        run_modes(args)
    except ValueError as error:
        program.error(str(error))


def _about(args: argparse.Namespace, data: Any) -> dict[str, Any]:
    return {
        "data": data.name,
        "n": len(data.numbers),
        "structures": data.fingerprint(),
        "every": args.every,
        "baseline_every": args.baseline_every or args.every,
        "seed": args.seed,
        "hardware": hardware(args.device),
        "torch": torch.__version__,
        "commit": commit(),
    }


def _plain(value: Any) -> Any:
    """Round numbers to six digits; what is not known, NaN, becomes None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
