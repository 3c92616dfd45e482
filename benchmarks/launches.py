"""Count the kernels of a training step, and the points where the host waits for the GPU.

    python -m benchmarks.launches --sizes M L

On a CPU they are counted as operations on a pretended GPU (:mod:`benchmarks.pretended`), in a model
with few channels, as widths do not matter; some operations are several kernels. With ``--device
cuda`` the launches are those that the profiler sees, and the waits those that PyTorch knows of.

A step is that of ``benchmarks.step``: batch to the device, graph, forward, loss, backward, clipping
and AdamW.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import collections
import warnings
from itertools import chain

import torch
from fairchem.core.common.utils import setup_imports

from benchmarks.arms import ARMS, SIZES, Step
from benchmarks.pretended import PretendedGPU
from dens.fast import attention, chunks
from dens.fast.products import block_linear
from dens.patching import replaced

FEW_CHANNELS = {
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "edge_channels": 8,
    "grid_resolution": 14,
    "num_heads": 2,
}
SHOWN = ["fairchem", "fairchem DeNS", "ours", "ours DeNS, r = 0.5"]


class FullStep(Step):
    """A step that begins with its batch on the host, and an optimizer as on a GPU."""

    def __init__(self, arm: str, size: dict, structures: int, device: str) -> None:
        super().__init__(arm, size, structures, device)
        self.on_host = self.batch.to("cpu")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, foreach=True)

    def __call__(self) -> None:
        self.batch = self.move(self.on_host.clone())
        super().__call__()


def pretend(step: FullStep) -> tuple[collections.Counter, collections.Counter]:
    """Count the operations of a step, and its waits by place, on a CPU."""
    with (
        replaced(chunks, _CPU=chunks._GPU),
        replaced(attention, complex_linear=block_linear),
        PretendedGPU() as gpu,
    ):
        gpu.put(step.model)
        step()
        gpu.launches.clear()
        gpu.waits.clear()
        step()
    return gpu.launches, gpu.waits


def measure(step: FullStep) -> tuple[collections.Counter, collections.Counter]:
    """Count the launches of a step on a GPU by name, and its waits by place."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing" in str(w.message)]
    waits = collections.Counter(f"{w.filename}, line {w.lineno}" for w in found)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
    return collections.Counter(kernels), waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["M", "L"], metavar="SIZE")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=SHOWN, metavar="ARM")
    parser.add_argument("--structures", type=int, default=1, help="in a batch")
    parser.add_argument("--device", default="cpu", help="cuda: measure on a GPU")
    parser.add_argument("--top", type=int, default=0, help="show the most frequent operations")
    args = parser.parse_args()
    setup_imports()
    print("| size | step | launches | waits |\n|---|---|---|---|")
    places = {}
    for size in args.sizes:
        for arm in args.arms:
            on_cpu = args.device == "cpu"
            settings = {**SIZES[size], **FEW_CHANNELS} if on_cpu else SIZES[size]
            step = FullStep(arm, settings, args.structures, args.device)
            launches, waits = pretend(step) if on_cpu else measure(step)
            print(f"| {size} | {arm} | {launches.total()} | {waits.total()} |", flush=True)
            places[f"{size}, {arm}"] = waits, launches.most_common(args.top)
    for step, (waits, most) in places.items():
        print(f"\n{step}:")
        for what, count in chain(waits.most_common(), most):
            print(f"  {count:5d}  {what}")


if __name__ == "__main__":
    main()
