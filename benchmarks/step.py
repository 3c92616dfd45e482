"""One training step of EquiformerV2, ours against fairchem's, with and without DeNS.

    python -m benchmarks.step --against fairchem --size M --out step.json

A step is everything from positions to new weights: graph, forward, loss, backward, clipping,
AdamW. Each arm has a process of its own and they take turns; their times are compared within each
round, so that what else the machine does touches all of them alike. On a CPU the time is that of
the process on one thread. The memory of a step is its peak above what model, optimizer and data
take, with an allocator that gives memory back.
"""

from __future__ import annotations

import dens  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch, Data

from dens.allocator import keep_freed_memory
from dens.config import parse_config
from dens.corruption import attach, corrupt, make_generator
from dens.loss import dens_loss, zero_gradient

DENS = {"sigma": 0.1, "denoising_coefficient": 10.0}
COMMON = {
    "use_pbc": True,
    "regress_forces": True,
    "otf_graph": True,
    "max_num_elements": 90,
    "enforce_max_neighbors_strictly": True,
    "norm_type": "layer_norm_sh",
    "attn_activation": "silu",
    "ffn_activation": "silu",
    "use_grid_mlp": True,
    "weight_init": "uniform",
}
_REAL = {
    "max_neighbors": 20,
    "max_radius": 12.0,
    "mmax_list": [2],
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "edge_channels": 128,
    "grid_resolution": 18,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.05,
}
SIZES = {
    "S": {
        **_REAL,
        "num_layers": 2,
        "lmax_list": [3],
        "sphere_channels": 32,
        "attn_hidden_channels": 32,
        "num_heads": 4,
        "attn_alpha_channels": 16,
        "attn_value_channels": 8,
        "ffn_hidden_channels": 32,
        "edge_channels": 32,
        "grid_resolution": 10,
    },
    "M": {**_REAL, "num_layers": 4, "lmax_list": [4]},
    "L": {**_REAL, "num_layers": 12, "lmax_list": [6]},  # OC20 2M
}
_OURS = {"energy": {"module": "dens.EnergyHead"}, "forces": {"module": "dens.ForceHead"}}
MODELS = {
    "fairchem": (
        {"model": "equiformer_v2_backbone"},
        {
            "energy": {"module": "equiformerV2_scalar_head"},
            "forces": {"module": "equiformerV2_vector_head"},
        },
    ),
    "fairchem DeNS": (
        {"model": "equiformer_v2_dens_backbone"},
        {
            "energy": {"module": "eqV2_DeNS_scalar_head"},
            "forces": {"module": "eqV2_DeNS_vector_head"},
        },
    ),
    "ours": (
        {"model": "dens.EquiformerV2Backbone", "force_encoding": False, "fast": True},
        _OURS,
    ),
    "ours DeNS": (
        {"model": "dens.EquiformerV2Backbone", "fast": True},
        {**_OURS, "noise": {"module": "dens.NoiseHead"}},
    ),
}
# arm: (model, r_DeNS; None for a clean batch)
ARMS = {
    "fairchem": ("fairchem", None),
    "fairchem DeNS": ("fairchem DeNS", 0.5),
    "ours": ("ours", None),
    "ours DeNS, clean batch": ("ours DeNS", None),
    "ours DeNS, r = 0.5": ("ours DeNS", 0.5),
    "ours DeNS, r = 1": ("ours DeNS", 1.0),
}
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


def make_batch(structures: int, seed: int = 0) -> Batch:
    """Rattled metal slabs with an adsorbate, 73 to 77 atoms: about OC20's average."""
    rng = np.random.default_rng(seed)
    return Batch.from_data_list([_slab(rng) for _ in range(structures)])


def _slab(rng: np.random.Generator) -> Data:
    slab = fcc111(rng.choice(["Cu", "Pt", "Pd", "Ag"]), size=(3, 4, 6), vacuum=8.0)
    slab.pbc = True
    for i, symbol in enumerate("CONHH"[: rng.integers(1, 6)]):
        add_adsorbate(slab, symbol, height=1.3 + 1.2 * i, position="fcc")
    slab.rattle(0.05, rng=rng)
    n = len(slab)
    return Data(
        pos=torch.tensor(slab.positions, dtype=torch.float32),
        cell=torch.tensor(np.array(slab.cell), dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(slab.numbers),
        natoms=n,
        fixed=torch.zeros(n),
        energy=float(rng.normal()),
        forces=torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32),
    )


def corrupted(batch: Batch, ratio: float | None, step: int = 0) -> Batch:
    """The batch with a share ``ratio`` of its atoms corrupted, in our fields and fairchem's."""
    batch = batch.clone()
    if ratio is None:
        return batch
    config = parse_config({"prob": 1.0, "corrupt_ratio": ratio, **DENS})
    noise = corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(0, step, 0))
    attach(batch, noise, batch.forces)
    batch.denoising_pos_forward = True
    return batch


def build(name: str, size: dict, **backbone) -> HydraModel:
    """A model of MODELS, its backbone with the settings ``size``."""
    settings, heads = MODELS[name]
    torch.manual_seed(0)
    return HydraModel(
        backbone={**settings, **COMMON, **size, **backbone},
        heads=heads,
        otf_graph=True,
        pass_through_head_outputs=True,
    )


class Step:
    """One arm: calling it takes a step.

    Args:
        arm: a key of ARMS.
        size: settings of the backbone.
    """

    def __init__(self, arm: str, size: dict, structures: int, device: str) -> None:
        name, ratio = ARMS[arm]
        self.model = build(name, size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.batch = corrupted(make_batch(structures), ratio).to(device)
        self.model.train()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = training_loss(self.model, self.batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 100)
        self.optimizer.step()


def training_loss(model: HydraModel, batch: Batch) -> torch.Tensor:
    """OC20's loss with DeNS, of one forward."""
    out = model(batch)
    loss = (out["energy"].view(-1) - batch.energy).abs().mean()
    noise, mask = getattr(batch, "noise", None), getattr(batch, "noise_mask", None)
    if noise is None:
        noise, mask = torch.zeros_like(batch.pos), torch.zeros_like(batch.fixed).bool()
    terms = dens_loss(
        forces_pred=out["forces"],
        forces=batch.forces,
        # fairchem's DeNS predicts both in one output; in a clean batch, no row counts
        noise_pred=out.get("noise", out["forces"]),
        noise=noise / 0.1,
        noise_mask=mask,
        free=torch.ones_like(mask),
        force_coefficient=100.0,
        denoising_coefficient=10.0,
    )
    if "noise" in model.output_heads and "noise" not in out:
        loss = loss + zero_gradient(model.output_heads["noise"].parameters())
    return 2 * loss + terms.forces + terms.noise


def timer(device: str) -> Callable[[], float]:
    """Seconds of this process on a CPU, of the clock on a GPU."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


class Arm:
    """An arm in a process of its own, as a training run has: calling it takes a step."""

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
        """The seconds of one step."""
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.arm}: ended with {self.process.wait()} (-9: memory for fewer --arms)")
        return float(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def take_steps(step: Step, device: str) -> None:
    """The other side of :class:`Arm`: a step for each line that comes in."""
    now = timer(device)
    for _ in sys.stdin:
        start = now()
        step()
        print(now() - start, flush=True)


def times(arms: list[str], size: dict, structures: int, rounds: int, device: str) -> dict:
    """Seconds of each step of each arm, round by round, in an order that changes."""
    steps = {arm: Arm(arm, size, structures, device) for arm in arms}
    found = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            found[arm].append(steps[arm]())
    for step in steps.values():
        step.close()
    return found


def memory(arm: str, size: dict, structures: int, device: str) -> float:
    """Peak of the second step above what was there before it, MiB, in this process."""
    step = Step(arm, size, structures, device)
    step()
    step.optimizer.zero_grad()
    return peak(step, device)


def peak(run: Callable[[], object], device: str) -> float:
    """Peak memory of ``run`` above what is there before it, MiB, in this process."""
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


def command_of(task: str, arm: str, size: dict, structures: int, device: str) -> list[str]:
    """The command that does a task for one arm."""
    command = [sys.executable, "-m", "benchmarks.step", task, arm, "--set", json.dumps(size)]
    return [*command, "--structures", str(structures), "--device", device]


def last_number(command: list[str]) -> float:
    """What a process prints last, with an allocator that gives memory back: the peak is the run's.

    Its last line is a number.
    """
    environment = {
        **os.environ,
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(out.stdout.splitlines()[-1])


def summary(values: list[float]) -> dict:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": median, "low": low, "high": high}


def commit() -> str:
    """The commit of the working tree, marked where it has changes."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def hardware(device: str) -> str:
    """The name of the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor()


def report(found: dict, used: dict, args: argparse.Namespace) -> dict:
    """What was measured, and where."""
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
    """The tables for docs/performance.md."""
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
