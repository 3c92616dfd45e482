"""Clocks, peak memory and a description of the machine, for all benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch


def clock(device: str) -> float:
    """Return process seconds on a CPU; on a GPU, wall seconds after its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Time one call, in seconds."""
    start = clock(device)
    run()
    return clock(device) - start


def in_turns(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each arm once in every round, in a changing order, and collect the results."""
    names, found = list(arms), {name: [] for name in arms}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(arms[name]())
    return found


def peak(run: Callable[[], object], device: str) -> float:
    """Return the peak memory of ``run`` above the memory before it, MiB, in this process."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def last_number(command: list[str]) -> float:
    """Run a command whose last line of output is a number, and return that number.

    Its allocator returns freed memory at once, so that peaks are those of the run.
    """
    environment = {
        **os.environ,
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(out.stdout.splitlines()[-1])


def summary(values: list[float]) -> dict:
    """Return median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": median, "low": low, "high": high}


def commit() -> str:
    """Return the commit of the working tree, marked ``-dirty`` if it has changes."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def hardware(device: str) -> str:
    """Return the name of the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
