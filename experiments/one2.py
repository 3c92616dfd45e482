"""Train and measure a run with fairchem-core 2: ``python -m experiments.one2 FOLDER``.

Training uses the ordinary launcher, and resumes the run's last checkpoint if there is one. Then two
checkpoints are measured on the validation and the test sets, as fairchem predicts from them: the
best by validation, with its moving average, and the last one, with its raw weights. The results are
written to ``FOLDER/measured.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from fairchem.core.calculate.pretrained_mlip import load_predict_unit
from fairchem.core.datasets import AseDBDataset
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

from dens.fairchem2.launch import launch
from experiments.timed import timed, train_and_measure

BEST, FINAL = "best_inference_ckpt.pt", "final/inference_ckpt.pt"
BATCH = 50  # structures to predict at once


def train(folder: Path, name: str, seed: int) -> None:
    """Train, and append the time to ``times.jsonl``, even if stopped."""
    checkpoints = folder / name / "checkpoints"
    if (checkpoints / FINAL).is_file():
        return
    saved = sorted(checkpoints.glob("*/resume.yaml"), key=lambda path: path.stat().st_mtime)
    if saved:
        argv = ["-c", str(saved[-1])]
    else:
        job = {"run_dir": folder, "timestamp_id": name, "seed": seed}
        argv = ["-c", str(folder / "config.yaml"), *(f"++job.{k}={v}" for k, v in job.items())]
    with timed(folder):
        launch(argv)


def measure(folder: Path, name: str, seed: int, tests: dict, sigmas: list) -> dict:
    """Measure errors by weights and test set (eV, eV/Å); add steps and number of parameters.

    Raises:
        ValueError: noise levels are given, at which nothing is measured here.
    """
    if sigmas:
        raise ValueError("sigmas: denoising is not measured in studies of fairchem-core 2")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    checkpoints = folder / name / "checkpoints"
    measured: dict = {"errors": {}, "denoising": {}, "steps": config["steps"]}
    for weights, file in (("best", BEST), ("final", FINAL)):
        unit = load_predict_unit(checkpoints / file, device="cpu")
        if weights == "final":
            saved = torch.load(checkpoints / file, map_location="cpu", weights_only=False)
            unit.model.module.load_state_dict(saved.model_state_dict)
        measured["parameters"] = sum(p.numel() for p in unit.model.parameters())
        measured["errors"][weights] = {
            test: errors(unit, src) for test, src in {"val": config["val_src"], **tests}.items()
        }
    return measured


def errors(unit, src: str) -> dict[str, float]:
    """Compute the errors of predictions of energy and forces on the structures of a folder."""
    ((dataset, _),) = unit.dataset_to_tasks.items()
    labels = {"r_energy": True, "r_forces": True}
    records = AseDBDataset({"src": src, "a2g_args": labels})
    structures = [records[i] for i in range(len(records))]
    energy, force, cosine = [], [], []
    for start in range(0, len(structures), BATCH):
        batch = atomicdata_list_to_batch(structures[start : start + BATCH])
        batch.dataset = [dataset] * len(batch.natoms)
        found = unit.predict(batch)
        energy.append((found["energy"].flatten().double() - batch.energy.double()).abs())
        force.append((found["forces"] - batch.forces).abs())
        cosine.append(torch.cosine_similarity(found["forces"], batch.forces))
    kept = {"energy_mae": energy, "forces_mae": force, "forces_cosine_similarity": cosine}
    return {name: torch.cat(values).mean().item() for name, values in kept.items()}


if __name__ == "__main__":
    train_and_measure(Path(sys.argv[1]), train, measure)
