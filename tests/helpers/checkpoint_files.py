"""Write checkpoints of every layout with the trainers that define them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports

from helpers.stress_settings import predicts_parts
from helpers.trainers import BACKBONE, DENS, MODEL, STOCK_MODEL, trainer_config, write_dataset

STRESS = {"stress": {"module": "rank2_symmetric_head", "output_name": "stress"}}
OLDER_DENS = {
    "use_denoising_pos": True,
    "denoising_pos_coefficient": 10,
    "denoising_pos_params": {"prob": 0.5, "fixed_noise_std": True, "std": 0.1},
}


def foreign_model(stress: bool = False, **backbone) -> dict:
    """Make the ``model`` section of fairchem 1.10's own DeNS."""
    heads = {
        "energy": {"module": "eqV2_DeNS_scalar_head"},
        "forces": {"module": "eqV2_DeNS_vector_head"},
    }
    if stress:
        heads["stress"] = {"module": "dens_rank2_symmetric_head", "output_name": "stress"}
    section = {"model": "equiformer_v2_dens_backbone", **BACKBONE, **backbone}
    return {**copy.deepcopy(STOCK_MODEL), "backbone": section, "heads": heads}


def new_trainer(name: str, src: str, folder: Path, *, model: dict, dens=None, **sections):
    """Build a trainer of fairchem or dens that writes its checkpoints below ``folder``."""
    setup_imports()
    config = trainer_config(src, model=model, dens=dens)
    if dens is None:
        del config["optimizer"]["dens"]
    if "stress" in model["heads"] and not predicts_parts(model):
        config["outputs"]["stress"] = {"level": "system", "irrep_dim": 2}
        config["loss_functions"].append({"stress": {"fn": "mae", "coefficient": 1}})
    config["optimizer"].update(sections.pop("optim", {}))
    config.update(is_debug=False, run_dir=str(folder), logger="tensorboard", **sections)
    config["timestamp_id"] = folder.name
    trainer = registry.get_trainer_class(name)(**config)
    trainer.best_val_metric = 1.0
    return trainer


def randomise(trainer, average: bool = True) -> None:
    """Randomise all weights, biases included, and the moving average, which then differs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if trainer.ema and average:
            for parameter in trainer.ema.shadow_params:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save(trainer) -> Path:
    """Save a checkpoint and return its path."""
    return Path(trainer.save(checkpoint_file="checkpoint.pt"))


def dens_trainer(src: str, folder: Path, model: dict, **sections):
    return new_trainer("dens", src, folder, model=model, dens=DENS, **sections)


def trained(folder: Path, stress: bool = False, splits=(), **sections):
    """Train a DeNS trainer for a few steps; its data serve as ``splits`` too (test, relax)."""
    src = write_dataset(folder / "data", n=20, **({"stress": torch.ones(1, 9)} if stress else {}))
    heads = {**MODEL["heads"], **(STRESS if stress else {})}
    dataset = {**trainer_config(src)["dataset"], **{name: {"src": src} for name in splits}}
    model = {**MODEL, "heads": heads}
    trainer = dens_trainer(src, folder / "run", model, dataset=dataset, **sections)
    trainer.train(disable_eval_tqdm=True)
    return trainer


def foreign_trainer(src: str, folder: Path, model: dict):
    return new_trainer("equiformerv2_dens", src, folder, model=model, optim=OLDER_DENS)


def plain_trainer(src: str, folder: Path, model: dict | None = None):
    model = copy.deepcopy(model or STOCK_MODEL)
    return new_trainer("equiformerv2_forces", src, folder, model=model)


def flatten(path: Path, name: str = "equiformer_v2", prefix: str = "module.module.") -> Path:
    """Rewrite a hydra checkpoint in the flat layout, with its authors' names."""
    content = torch.load(path, weights_only=True)
    renamed = {}
    for key, value in content["state_dict"].items():
        key = key.removeprefix("backbone.")
        key = key.replace("output_heads.energy.scalar_block.", "energy_block.")
        key = key.replace("output_heads.energy.energy_block.", "energy_block.")
        key = key.replace("output_heads.forces.denoising_pos_block.", "denoising_pos_block.")
        key = key.replace("output_heads.forces.vector_block.", "force_block.")
        key = key.replace("output_heads.forces.force_block.", "force_block.")
        renamed[prefix + key] = value
    content["state_dict"] = renamed
    backbone = content["config"]["model"]["backbone"]
    del backbone["model"]
    content["config"]["model"], content["config"]["model_attributes"] = name, backbone
    out = path.with_name("flat.pt")
    torch.save(content, out)
    return out
