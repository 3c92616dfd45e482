"""Results, clocks and precisions that the stages share, and the choice of a backend."""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import gc
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.floors import CEILINGS
from benchmarks.measure import commit, hardware
from dens.fast.backends import using

PRECISIONS = ("fp32", "tf32", "bf16")
TINY = {
    "num_layers": 1,
    "lmax_list": [2],
    "sphere_channels": 16,
    "attn_hidden_channels": 16,
    "ffn_hidden_channels": 16,
    "grid_resolution": 8,
    "max_neighbors": 6,
    "max_radius": 6.0,
}


def with_backend(name: str, function: Callable) -> Callable:
    """Return ``function``, called under one backend."""

    def run(*args, **kwargs):
        with using(name):
            return function(*args, **kwargs)

    return run


class Stage:
    """Arguments of a stage, its clock, and what it found, in a JSON file.

    Args:
        path: the file, written after every measurement.
    """

    def __init__(self, name: str, args: argparse.Namespace, path: Path) -> None:
        self.name, self.args, self.path = name, args, path
        self.start = time.monotonic()
        self.device = "cpu" if args.cpu else "cuda"
        self.cuda = not args.cpu
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        self.found: dict = {"stage": name, "about": about(self.device), "arguments": settings}
        self.found |= {"errors": {}, "not_reached": []}

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.args.budget - (time.monotonic() - self.start)

    def reaches(self, what: str, seconds: float) -> bool:
        """Tell whether ``seconds`` are left; if not, note that ``what`` is not measured."""
        if self.left() >= seconds:
            return True
        self.found["not_reached"].append(what)
        return False

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self.cuda:
            torch.cuda.synchronize()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note a failure and go on; write what was found so far."""
        start, failed = time.monotonic(), False
        try:
            yield
        except Exception as error:
            self.fail(name, error)
            failed = True
        if failed:
            self.release()
        passed = time.monotonic() - start
        print(f"   {name}: {passed:.1f} s, {self.left():.0f} s left", flush=True)
        self.write()

    def fail(self, name: str, error: Exception) -> None:
        """Note an error."""
        self.found["errors"][name] = f"{type(error).__name__}: {error}"[:2000]
        print(f"!! {name}: {traceback.format_exc(limit=-4)}", flush=True)

    def release(self) -> None:
        """Give back memory: of models, which refer to themselves, and of what failed."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Write the results."""
        self.found["seconds"] = time.monotonic() - self.start
        self.path.write_text(json.dumps(self.found, indent=1, default=str) + "\n")


def about(device: str) -> dict:
    """Describe hardware, versions and commit; COMMIT names it where there is no git."""
    found = {"hardware": hardware(device), "commit": os.environ.get("COMMIT") or commit()}
    found |= {"torch": torch.__version__, "numpy": np.__version__}
    found["python"] = platform.python_version()
    if device != "cpu":
        total = torch.cuda.get_device_properties(0).total_memory
        found |= {"cuda": torch.version.cuda, "memory_MiB": total / 2**20}
    return found


def milliseconds(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Time one call in ms: on the device (by CUDA events), and until the host was free again."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        passed = 1e3 * (time.perf_counter() - start)
        return passed, passed
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    run()
    end.record()
    host = time.perf_counter() - start
    end.synchronize()
    return begin.elapsed_time(end), 1e3 * host


def median_ms(run: Callable[[], object], device: str, seconds: float) -> float:
    """Return the median over calls for about ``seconds``, at least three, after a warm-up."""
    for _ in range(2):
        run()
    times, start = [], time.monotonic()
    while len(times) < 3 or (time.monotonic() - start < seconds and len(times) < 200):
        times.append(milliseconds(run, device)[0])
    return statistics.median(times)


def peak_MiB(run: Callable[[], object], device: str) -> float | None:
    """Return the peak memory of a call above that before it; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_ceilings(stage: Stage) -> dict[str, float]:
    """Measure copies, TB/s, and products, TFLOP/s; on a CPU return the table's."""
    found = dict(CEILINGS)
    if not stage.cuda:
        return found
    source, target = torch.randn(2, 2**28, device="cuda")
    passed = median_ms(lambda: target.copy_(source), "cuda", 0.2)
    found["copy"] = 2 * source.nbytes / passed / 1e9
    n = 8192
    for name in PRECISIONS:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = torch.randn(2, n, n, device="cuda", dtype=dtype)
        with precision(name):
            found[name] = 2 * n**3 / median_ms(lambda a=a, b=b: a @ b, "cuda", 0.2) / 1e9
    return found


@contextmanager
def precision(name: str) -> Iterator[Callable]:
    """Set the precision of products: fp32, tf32 or bf16.

    Yields:
        a function of the device that returns the context of forward passes: autocast for bf16.
    """
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = name == "tf32"
    try:
        yield _bfloat16 if name == "bf16" else lambda device: nullcontext()
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def _bfloat16(device: str):
    return torch.autocast(device, dtype=torch.bfloat16)


def run_in_context(model: torch.nn.Module, context: Callable, device: str) -> None:
    """Run a model's forward pass in a context; its outputs are float32, as in the trainer."""
    forward = model.forward

    def inside(batch) -> dict[str, torch.Tensor]:
        with context(device):
            out = forward(batch)
        return {name: value.float() for name, value in out.items()}

    model.forward = inside


def markdown(head: list[str], rows: list[list]) -> list[str]:
    """Format a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
