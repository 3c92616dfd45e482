"""Compare a training step of our EquiformerV2 with fairchem's, with and without DeNS.

    python -m benchmarks.step --against fairchem --size M --out step.json

A step is everything from positions to new weights: graph, forward, loss, backward, clipping,
AdamW. Each arm runs in a process of its own, in turns; times are compared within each round, so
that other load on the machine affects all arms alike. On a CPU the time is that of the process on
one thread. The memory of a step is its peak above what model, optimizer and data take,
with an allocator that returns freed memory.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports

from benchmarks.arms import ARMS, SIZES, Step
from benchmarks.measure import commit, hardware, in_turns, last_number, peak, seconds_of, summary
from dens.process import keep_freed_memory

# seconds of steps that do not count, at least two: until the memory of a step is kept for the next
WARM_UP = 4.0
# a ratio of the table: (name, numerator, denominator)
RATIOS = [
    ("plain, fairchem / ours", "fairchem", "ours"),
    ("DeNS r = 0.5, fairchem / ours", "fairchem DeNS", "ours DeNS, r = 0.5"),
    ("fairchem, DeNS / plain", "fairchem DeNS", "fairchem"),
    ("ours, DeNS clean batch / plain", "ours DeNS, clean batch", "ours"),
    ("ours, DeNS r = 0.5 / plain", "ours DeNS, r = 0.5", "ours"),
    ("ours, DeNS r = 1 / plain", "ours DeNS, r = 1", "ours"),
]


class Arm:
    """Arm in a process of its own, like a training run; each call takes a step."""

    def __init__(self, arm: str, size: dict, structures: int, device: str) -> None:
        self.arm = arm
        command = command_of("--steps-of", arm, size, structures, device)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        start, steps = time.monotonic(), 0
        while steps < 2 or time.monotonic() - start < WARM_UP:
            self()
            steps += 1

    def __call__(self) -> float:
        """Take one step and return its seconds."""
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.arm}: ended with {self.process.wait()} (-9: memory for fewer --arms)")
        return float(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def take_steps(step: Step, device: str) -> None:
    """Take a step for each line of input; the process behind :class:`Arm`."""
    for _ in sys.stdin:
        print(seconds_of(step, device), flush=True)


def times(arms: list[str], size: dict, structures: int, rounds: int, device: str) -> dict:
    """Measure the seconds of each step of each arm, in turns."""
    steps = {arm: Arm(arm, size, structures, device) for arm in arms}
    found = in_turns(steps, rounds)
    for step in steps.values():
        step.close()
    return found


def memory(arm: str, size: dict, structures: int, device: str) -> float:
    """Return the peak memory of the second step above the memory before it, MiB."""
    step = Step(arm, size, structures, device)
    step()
    step.optimizer.zero_grad()
    return peak(step, device)


def command_of(task: str, arm: str, size: dict, structures: int, device: str) -> list[str]:
    """Return the command that runs a task for one arm."""
    command = [sys.executable, "-m", "benchmarks.step", task, arm, "--set", json.dumps(size)]
    return [*command, "--structures", str(structures), "--device", device]


def report(found: dict, used: dict, args: argparse.Namespace) -> dict:
    """Collect the measurements and a description of the machine."""
    ratios = {
        name: summary([a / b for a, b in zip(found[over], found[under], strict=True)])
        for name, over, under in RATIOS
        if over in found and under in found
    }
    return {
        "size": args.size,
        "structures": args.structures,
        "rounds": args.rounds,
        "set": args.set,
        "hardware": hardware(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "seconds": {arm: summary(values) for arm, values in found.items()},
        "memory_MiB": used,
        "ratios": ratios,
    }


def markdown(result: dict) -> str:
    """Format the tables for docs/performance.md."""
    lines = ["| arm | s / step | memory, MiB |", "|---|---|---|"]
    for arm, s in result["seconds"].items():
        used = result["memory_MiB"].get(arm)
        lines.append(f"| {arm} | {s['median']:.3g} | {'' if used is None else f'{used:.0f}'} |")
    lines += ["", "| ratio | median | quartiles |", "|---|---|---|"]
    for name, s in result["ratios"].items():
        lines.append(f"| {name} | {s['median']:.3f} | {s['low']:.3f} - {s['high']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=["fairchem"], help="measure fairchem's arms too")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--size", choices=SIZES, default="M")
    parser.add_argument("--structures", type=int, default=1, help="in a batch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", type=json.loads, default={}, help="JSON, settings to replace")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--steps-of", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setup_imports()
    if args.device == "cpu":
        torch.set_num_threads(1)
    size = {**SIZES[args.size], **args.set}
    setting = (size, args.structures, args.device)
    if args.memory_of:
        print(memory(args.memory_of, *setting))
        return
    if args.steps_of:
        if args.device == "cpu" and args.steps_of.startswith("ours"):
            keep_freed_memory()  # as DeNSTrainer does
        take_steps(Step(args.steps_of, *setting), args.device)
        return
    arms = [arm for arm in args.arms if args.against or not arm.startswith("fairchem")]
    found = times(arms, size, args.structures, args.rounds, args.device)
    used = {}
    if not args.no_memory:
        used = {arm: last_number(command_of("--memory-of", arm, *setting)) for arm in arms}
    result = report(found, used, args)
    print(markdown(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
