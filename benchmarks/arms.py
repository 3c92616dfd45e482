"""Models, batches of slabs and training steps that the benchmarks compare."""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch, Data

from dens import transfer
from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.denoising.loss import dens_loss
from dens.random import make_generator
from dens.ranks import zero_gradient

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


def make_batch(structures: int, seed: int = 0) -> Batch:
    """Make a batch of rattled metal slabs with an adsorbate, 73 to 77 atoms (OC20's average)."""
    rng = np.random.default_rng(seed)
    return Batch.from_data_list([_slab(rng) for _ in range(structures)])


def _slab(rng: np.random.Generator) -> Data:
    slab = fcc111(rng.choice(["Cu", "Pt", "Pd", "Ag"]), size=(3, 4, 6), vacuum=8.0)
    slab.pbc = True
    for i, symbol in enumerate("CONHH"[: rng.integers(1, 6)]):
        add_adsorbate(slab, symbol, height=1.3 + 1.2 * i, position="fcc")
    slab.rattle(0.05, rng=rng)
    return labelled(slab, rng.normal(), rng.normal(size=(len(slab), 3)))


def labelled(atoms: Atoms, energy: float, forces: np.ndarray) -> Data:
    """Convert a structure to ``Data``, with an energy in eV and forces, (n_atoms, 3) in eV/Å."""
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(atoms.numbers),
        natoms=len(atoms),
        fixed=torch.zeros(len(atoms)),
        energy=float(energy),
        forces=torch.tensor(forces, dtype=torch.float32),
    )


def corrupted(batch: Batch, ratio: float | None, step: int = 0) -> Batch:
    """Corrupt a share ``ratio`` of a batch's atoms, in the fields of dens and of fairchem."""
    batch = batch.clone()
    if ratio is None:
        return batch
    config = parse_config({"prob": 1.0, "corrupt_ratio": ratio, **DENS})
    noise = corrupt(batch.pos, batch.batch, batch.natoms, config, make_generator(0, step, 0))
    attach(batch, noise, batch.forces)
    batch.denoising_pos_forward = True
    return batch


def build(name: str, size: dict, **backbone) -> HydraModel:
    """Build a model of MODELS whose backbone has the settings ``size``."""
    settings, heads = MODELS[name]
    torch.manual_seed(0)
    return HydraModel(
        backbone={**settings, **COMMON, **size, **backbone},
        heads=heads,
        otf_graph=True,
        pass_through_head_outputs=True,
    )


class Step:
    """Training step of one arm, taken at each call.

    Args:
        arm: a key of ARMS.
        size: settings of the backbone.
    """

    def __init__(self, arm: str, size: dict, structures: int, device: str) -> None:
        name, ratio = ARMS[arm]
        self.arm, self.device = arm, torch.device(device)
        self.model = build(name, size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.batch = self.move(corrupted(make_batch(structures), ratio))
        self.model.train()

    def move(self, batch: Batch) -> Batch:
        """Move a batch to the device as the arm's trainer does: ours keeps it on the host too."""
        move = transfer.to_device if self.arm.startswith("ours") else transfer.copy_to_device
        return move(batch, self.device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = training_loss(self.model, self.batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 100)
        self.optimizer.step()


def training_loss(model: HydraModel, batch: Batch) -> torch.Tensor:
    """Compute OC20's loss with DeNS in one forward pass."""
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
