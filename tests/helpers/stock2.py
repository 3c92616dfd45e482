"""Configs of tiny models, data sets and runs of fairchem-core 2, built as its program does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from fairchem.core._cli import get_canonical_config
from fairchem.core.common import distutils
from fairchem.core.launchers.api import JobConfig
from omegaconf import OmegaConf

DENS = {"prob": 0.6, "sigma": 0.1, "corrupt_ratio": 0.5, "denoising_coefficient": 7.0}
STOCK = "fairchem.core.units.mlip_unit.mlip_unit.MLIPTrainEvalUnit"
_UNIT = "fairchem.core.units.mlip_unit.mlip_unit"
_LOSS = "fairchem.core.modules.loss"
_ESCN = "fairchem.core.models.uma.escn_md"
_BACKBONE = {
    "model": f"{_ESCN}.eSCNMDBackbone",
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "lmax": 2,
    "mmax": 2,
    "num_layers": 1,
    "cutoff": 4.0,
    "num_distance_basis": 8,
    "max_neighbors": 10,
    "otf_graph": True,
    "always_use_pbc": False,
    "regress_forces": True,
    "ff_type": "spectral",
}
MOE = {"model": "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone", "num_experts": 4}


def make_atoms(rng: np.random.Generator):
    """Build a rattled slab with an adsorbate and random labels; its lowest layer is fixed."""
    size = [(1, 2, 2), (2, 2, 2), (1, 2, 3)][rng.integers(3)]
    atoms = fcc111(["Cu", "Pt", "Ag"][rng.integers(3)], size, vacuum=5.0)
    add_adsorbate(atoms, "OH"[rng.integers(2)], 1.3 + 0.3 * rng.random(), "ontop")
    atoms.set_constraint(FixAtoms([a.index for a in atoms if a.tag == size[2]]))
    atoms.pbc = True
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
    atoms.calc = SinglePointCalculator(atoms, **labels, stress=rng.normal(size=6))
    return atoms


def write_data(folder: Path, n: int = 12, seed: int = 0) -> Path:
    """Write an aselmdb data set with the numbers of atoms that fairchem's samplers read."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    structures = [make_atoms(rng) for _ in range(n)]
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for atoms in structures:
            database.write(atoms)
    np.savez(folder / "metadata.npz", natoms=np.array([len(a) for a in structures]))
    return folder


def task(kind: str, data: str, prefix: str = "", reduction: str = "mean") -> dict[str, Any]:
    """Return the section of a task."""
    errors = {"energy": "PerAtomMAELoss", "forces": "L2NormLoss", "stress": "MAELoss"}
    dims = {"energy": [1], "forces": [3], "stress": [1, 9]}
    coefficients = {"energy": 20.0, "forces": 10.0, "stress": 5.0}
    loss = {
        "_target_": f"{_LOSS}.DDPMTLoss",
        "loss_fn": {"_target_": f"{_LOSS}.{errors[kind]}"},
        "coefficient": coefficients[kind],
        "reduction": reduction if kind == "forces" else "mean",
    }
    normalizer = "fairchem.core.modules.normalization.normalizer.Normalizer"
    return {
        "_target_": f"{_UNIT}.Task",
        "name": prefix + kind,
        "level": "atom" if kind == "forces" else "system",
        "property": kind,
        "datasets": [data],
        "metrics": ["mae"],
        "loss_fn": loss,
        "out_spec": {"dim": dims[kind], "dtype": "float32"},
        "normalizer": {"_target_": normalizer, "mean": 0.0, "rmsd": 1.5},
    }


def make_config(
    folder: Path,
    src: dict[str, Path],
    *,
    dens: dict | None = DENS,
    gradient: bool = False,
    reduction: str = "mean",
    backbone: dict | None = None,
    steps: int = 4,
    unit: dict | None = None,
    job: dict | None = None,
) -> dict[str, Any]:
    """Return the config of a run on data sets ``src``, by name.

    Args:
        dens: its settings; None: the stock unit.
        gradient: whether forces and stress are gradients of the energy.
        reduction: of the force loss.
        backbone, unit, job: further keys of these sections.
    """
    several = len(src) > 1
    kinds = ["energy", "forces"] + ["stress"] * gradient
    tasks = [task(kind, name, f"{name}_" * several, reduction) for name in src for kind in kinds]
    heads = {"energy": {"module": f"{_ESCN}.MLP_Energy_Head"}}
    heads["forces"] = {"module": f"{_ESCN}.Linear_Force_Head"}
    if gradient:
        heads = {"efs": {"module": f"{_ESCN}.MLP_EFS_Head"}}
    if several:
        wrapper = "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper"
        heads = {
            kind: {
                "module": wrapper,
                "dataset_names": list(src),
                "head_cls": heads[kind]["module"],
            }
            for kind in kinds
        }
    model = {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": {
            **_BACKBONE,
            "direct_forces": not gradient,
            "regress_stress": gradient,
            "dataset_mapping": {name: name for name in src},
            **(backbone or {}),
        },
        "heads": heads,
        "pass_through_head_outputs": gradient or several,
        "model_id": "UMA-1.2",  # which the host asks of models with experts
    }
    train_eval_unit = {
        "_target_": "dens.fairchem2.DeNSTrainEvalUnit" if dens else STOCK,
        **({"dens": dens} if dens else {}),
        "job_config": "${job}",
        "tasks": tasks,
        "model": model,
        "optimizer_fn": {
            "_target_": "torch.optim.AdamW",
            "_partial_": True,
            "lr": 1e-3,
            "weight_decay": 1e-3,
        },
        "cosine_lr_scheduler_fn": {
            "_target_": f"{_UNIT}._get_consine_lr_scheduler",
            "_partial_": True,
            "warmup_factor": 0.5,
            "warmup_epochs": 0.1,
            "lr_min_factor": 0.1,
            "steps": steps,
        },
        "print_every": 1,
        "clip_grad_norm": 100,
        "ema_decay": 0.9,
        **(unit or {}),
    }
    return {
        "job": {
            "device_type": "CPU",
            "debug": True,
            "run_dir": str(folder),
            "timestamp_id": "run",
            "seed": 3,
            **(job or {}),
        },
        "runner": {
            "_target_": "fairchem.core.components.train.train_runner.TrainEvalRunner",
            "max_epochs": None,
            "max_steps": steps,
            "evaluate_every_n_steps": 2,
            "train_dataloader": _loader(src, tasks, gradient, "train"),
            "eval_dataloader": _loader(src, tasks, gradient, "val"),
            "train_eval_unit": train_eval_unit,
            "callbacks": [
                {
                    "_target_": "fairchem.core.components.callbacks.TrainCheckpointCallback",
                    "checkpoint_every_n_steps": 2,
                    "max_saved_checkpoints": 10,
                }
            ],
        },
    }


def _loader(src: dict[str, Path], tasks: list, gradient: bool, split: str) -> dict[str, Any]:
    sets = {}
    for name, path in src.items():
        transforms = {"common_transform": {"dataset_name": name}}
        if gradient:
            transforms["stress_reshape_transform"] = {"dataset_name": name}
        sets[name] = {
            "splits": {split: {"src": [str(path)]}},
            "format": "ase_db",
            "a2g_args": {"r_energy": True, "r_forces": True, "r_stress": gradient},
            "transforms": transforms,
        }
        if len(src) > 1:
            kinds = ("energy", "forces", "stress")[: 2 + gradient]
            sets[name]["key_mapping"] = {kind: f"{name}_{kind}" for kind in kinds}
    sampler = "fairchem.core.datasets.samplers.max_atom_distributed_sampler"
    return {
        "_target_": "fairchem.core.components.common.dataloader_builder.get_dataloader",
        "num_workers": 0,
        "batch_sampler_fn": {
            "_target_": f"{sampler}.MaxAtomDistributedBatchSampler",
            "_partial_": True,
            "max_atoms": 40,
            "min_atoms": 2,
            "shuffle": True,
            "seed": 0,
        },
        "collate_fn": {"_target_": f"{_UNIT}.mt_collater_adapter", "tasks": tasks},
        "dataset": {
            "_target_": "fairchem.core.datasets.mt_concat_dataset.create_concat_dataset",
            "dataset_configs": sets,
            "combined_dataset_config": {"sampling": {"type": "temperature", "temperature": 1.0}},
        },
    }


def canonical(config: dict[str, Any]) -> Any:
    """Complete and resolve a config as the program does, and write it into the run's folder."""
    given = OmegaConf.create(config)
    done = get_canonical_config(OmegaConf.merge({"job": OmegaConf.structured(JobConfig)}, given))
    os.makedirs(done.job.metadata.log_dir, exist_ok=True)
    OmegaConf.save(done, done.job.metadata.config_path)
    return done


def make_runner(config: dict[str, Any]) -> Any:
    """Build a runner, as its program does."""
    if not distutils.initialized():
        distutils.setup_env_local()
        setup = {"world_size": 1, "distributed_backend": "gloo", "submit": False, "cpu": True}
        distutils.setup({**setup, "init_method": "tcp", "array_job_num": 0})
    done = canonical(config)
    torch.manual_seed(done.job.seed)
    runner = hydra.utils.instantiate(done.runner)
    runner.job_config = done.job
    return runner


def state_of(runner: Any) -> Any:
    """Return what a unit reads of torchtnt's state in a training step."""
    phase = SimpleNamespace(
        dataloader=runner.train_dataloader,
        max_steps=runner.max_steps,
        max_epochs=runner.max_epochs,
    )
    return SimpleNamespace(train_state=phase)


def train_steps(runner: Any, batches: Sequence[Any], before=lambda step: None) -> None:
    """Train on given batches; ``before`` is called with the number of each step."""
    unit, state = runner.train_eval_unit, state_of(runner)
    unit.on_train_start(state)
    try:
        for step, batch in enumerate(batches):
            before(step)
            unit.train_step(state, batch)
            unit.train_progress.increment_step()
    finally:
        unit.on_train_end(state)


def weights(unit: Any) -> dict[str, torch.Tensor]:
    """Return the parameters of a unit's model by the names of the bare model."""
    named = unit.model.named_parameters()
    return {name.removeprefix("module."): value.detach() for name, value in named}
