"""Compare loss curves of the fast path and of fairchem's modules from the same weights.

    python -m benchmarks.curve --steps 300 --out curve.json

All runs see the same batches, noise and edge frames, and diverge by rounding. The controls are
runs of fairchem's modules from weights that differ in the last digit.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from fairchem.core.common.utils import setup_imports
from torch_geometric.data import Batch, Data

from benchmarks.arms import SIZES, build, corrupted, labelled, training_loss
from benchmarks.measure import commit

BATCH_SIZE = 4
SIZE = {
    **SIZES["S"],
    "lmax_list": [2],
    "sphere_channels": 16,
    "attn_hidden_channels": 16,
    "ffn_hidden_channels": 16,
    "edge_channels": 16,
    "grid_resolution": 8,
    "max_radius": 6.0,
    "max_neighbors": 12,
}
# how a run differs from the first one: (fast, relative change of the weights, its seed)
RUNS = {
    "fairchem's modules": (False, 0.0, 0),
    "fast path": (True, 0.0, 0),
    "control 1": (False, 1e-7, 1),
    "control 2": (False, 1e-7, 2),
}


def structures(count: int) -> list[Data]:
    """Make small rattled slabs with an oxygen atom, and normalised EMT energies and forces."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        slab = fcc111(rng.choice(["Cu", "Pt", "Pd", "Ag"]), size=(2, 2, 3), vacuum=6.0)
        slab.pbc = True
        add_adsorbate(slab, "O", height=1.3, position="fcc")
        slab.rattle(0.1, rng=rng)
        slab.calc = EMT()
        found.append(slab)
    energies = np.array([slab.get_potential_energy() for slab in found])
    forces = np.array([slab.get_forces() for slab in found])
    energies = (energies - energies.mean()) / energies.std()
    forces = forces / forces.std()
    return [labelled(*of) for of in zip(found, energies, forces, strict=True)]


def train(run: str, steps: int, data: list[Data]) -> tuple[list[float], dict]:
    """Train, and return the loss of every step and the final weights."""
    fast, change, seed = RUNS[run]
    model = build("ours DeNS", SIZE, fast=fast).train()
    of_weights = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + change * torch.randn(p.shape, generator=of_weights))
    of_batches = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-3)
    losses = []
    for step in range(steps):
        of = torch.randint(len(data), (BATCH_SIZE,), generator=of_batches)
        # every other batch is corrupted
        batch = corrupted(
            Batch.from_data_list([data[i] for i in of]), 0.5 if step % 2 else None, step
        )
        torch.manual_seed(step)  # frames, dropout
        optimizer.zero_grad()
        loss = training_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def drift(losses: list[float], reference: list[float]) -> np.ndarray:
    """Return the relative difference of each loss: (steps,)."""
    return abs(np.array(losses) / np.array(reference) - 1)


def table(curves: dict[str, list[float]], windows: int = 6) -> str:
    """Format the drift of each run from the first, root mean square in windows of steps."""
    (first, reference), *others = curves.items()
    parts = np.array_split(np.arange(len(reference)), windows)
    lines = [f"| steps | loss, {first} | " + " | ".join(name for name, _ in others) + " |"]
    lines.append("|---|---|" + "---|" * len(others))
    for part in parts:
        cells = [f"{part[0] + 1}-{part[-1] + 1}", f"{np.mean(np.array(reference)[part]):.4g}"]
        for _, losses in others:
            cells.append(f"{np.sqrt((drift(losses, reference)[part] ** 2).mean()):.1e}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    setup_imports()
    torch.set_num_threads(1)
    data = structures(64)
    curves = {run: train(run, args.steps, data)[0] for run in RUNS}
    print(table(curves))
    if args.out:
        result = {"commit": commit(), "torch": torch.__version__, "losses": curves}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
