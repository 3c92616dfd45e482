"""Measure training on a GPU, in stages that each keep to a budget of seconds.

    python -m benchmarks.gpu smoke -- step --sizes M L -- kernels --ops s2

One process runs the stages, each with its options, separated by --:

smoke    trains the demo in several ways at once, stops and resumes a run, and compares numbers
numbers  compares errors of the fast path and of fairchem's modules against float64
step     times training steps, and measures their memory
profile  lists the kernels of a step
kernels  times single operations

Each stage keeps to a budget of seconds, writes STAGE.json to a folder after every measurement and
ends with a table. What fails is noted, and what the budget does not reach is named.
--cpu --tiny tries everything on a CPU. --table FILE... formats results, and stops.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path

if "--cpu" in sys.argv:  # read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
# before fairchem: it supplies what fairchem imports
import dens.fairchem1  # noqa: F401  # isort: skip
import torch
from fairchem.core.common.utils import setup_imports

from benchmarks.arms import SIZES
from benchmarks.gpu import kernels, numbers, profiles, smoke, steps
from benchmarks.gpu.candidates import OPERATIONS
from benchmarks.gpu.harness import PRECISIONS, Stage
from dens.fast.backends import BACKENDS

STAGES = {
    "smoke": smoke,
    "numbers": numbers,
    "step": steps,
    "profile": profiles,
    "kernels": kernels,
}
BUDGETS = {"smoke": 150, "numbers": 60, "step": 290, "profile": 115, "kernels": 150}
# of --sizes, --precisions and --seconds
DEFAULTS = {
    "profile": (["M"], ["fp32", "tf32"], 0.0),
    "kernels": (["M", "L"], list(PRECISIONS), 0.2),
}
DEFAULT = (["M", "L", "S"], list(PRECISIONS), 6.0)


def parser() -> argparse.ArgumentParser:
    """Make the parser of one stage's options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("stage", choices=STAGES, nargs="?")
    add("--cpu", action="store_true", help="on a CPU")
    add("--tiny", action="store_true", help="small and few")
    add("--budget", type=float, metavar="SECONDS", help=f"of the stage  {BUDGETS}")
    add("--out", type=Path, metavar="FOLDER", help="of JSON files  [$OUT, or results/gpu]")
    add("--sizes", nargs="+", choices=SIZES, help="of models")
    add("--batches", nargs="+", default=["M:16", "L:4", "S:16"], metavar="SIZE:STRUCTURES")
    add("--precisions", nargs="+", choices=PRECISIONS)
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="of the fast path")
    add("--arms", nargs="+", choices=steps.ARMS, metavar="ARM", help="of step and profile")
    add("--rounds", type=int, default=20, help="of a case of step, at most")
    add("--seconds", type=float, help="of a case of step, of a candidate of kernels")
    add("--single", action="store_true", help="step: one structure too, in fp32")
    add("--ops", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="of kernels")
    add("--top", type=int, default=15, help="kernels in profile's table")
    add("--table", type=Path, nargs="+", metavar="FILE", help="format results, and stop")
    return found


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the options of one stage.

    Raises:
        ValueError: one line that names the option.
    """
    args = parser().parse_args(argv)
    if args.table:
        return args
    if args.stage is None:
        raise ValueError(f"a stage is missing: {', '.join(STAGES)}")
    sizes, precisions, seconds = DEFAULTS.get(args.stage, DEFAULT)
    args.sizes, args.precisions = args.sizes or sizes, args.precisions or precisions
    args.seconds = seconds if args.seconds is None else args.seconds
    args.budget = BUDGETS[args.stage] if args.budget is None else args.budget
    args.out = args.out or Path(os.environ.get("OUT") or "results/gpu")
    if args.tiny:
        args.rounds, args.seconds = min(args.rounds, 3), 0.0
    for name in ("budget", "rounds", "top"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name} must be > 0, got {getattr(args, name):g}")
    args.batches = [_batch(text, args.tiny) for text in args.batches]
    if missing := sorted(set(args.sizes) - {size for size, _ in args.batches}):
        raise ValueError(f"--batches has no number of structures for {', '.join(missing)}")
    return args


def _batch(text: str, tiny: bool) -> tuple[str, int]:
    size, _, count = text.partition(":")
    if size not in SIZES or not count.isdigit() or int(count) < 1:
        raise ValueError(f"--batches must be SIZE:STRUCTURES, as M:16, got {text!r}")
    return size, 1 if tiny else int(count)


def split_stages(argv: list[str]) -> list[list[str]]:
    """Split a command line at each ``--``."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def format_result(found: dict) -> str:
    """Format a stage's result as Markdown, with the card, the versions and the commit."""
    about = found["about"]
    line = (
        f"{found['stage']}: {about['hardware']}, torch {about['torch']}, commit {about['commit']}"
    )
    lines = [line, "", *STAGES[found["stage"]].table(found)]
    lines += [f"failed: {name}: {text[:200]}" for name, text in found["errors"].items()]
    lines += [f"not reached in the budget: {name}" for name in found["not_reached"]]
    return "\n".join(lines)


def run_stage(args: argparse.Namespace) -> bool:
    """Run one stage and print its table; return whether nothing failed."""
    args.out.mkdir(parents=True, exist_ok=True)
    path, number = args.out / f"{args.stage}.json", 1
    while path in _written:
        number += 1
        path = args.out / f"{args.stage}-{number}.json"
    _written.add(path)
    stage = Stage(args.stage, args, path)
    with stage.part(args.stage):
        STAGES[args.stage].measure(stage)
    try:
        print(f"\n{format_result(json.loads(path.read_text()))}\n", flush=True)
    except Exception:  # the next stage is worth more than a table
        traceback.print_exc()
    return not stage.found["errors"]


_written: set[Path] = set()


def main() -> None:
    try:
        stages = [read_arguments(part) for part in split_stages(sys.argv[1:])]
    except ValueError as error:
        sys.exit(f"error: {error}")
    if stages[0].table:
        print("\n\n".join(format_result(json.loads(p.read_text())) for p in stages[0].table))
        return
    if not torch.cuda.is_available() and not all(args.cpu for args in stages):
        sys.exit("error: no GPU is visible: --cpu --tiny tries the stages on a CPU")
    setup_imports()
    if any(args.cpu for args in stages):
        torch.set_num_threads(1)
    done = [run_stage(args) for args in stages]
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
