"""Train with everything logged, stop and resume, and read W&B's offline files back."""

from __future__ import annotations

import json

import pytest
import yaml
from helpers.logged_run import end_wandb_run, read_rows
from helpers.trainers import DENS, EXACT_MODEL, trainer_config, write_dataset
from PIL import Image

from dens.fairchem1 import DeNSTrainer
from dens.runs.wandb_files import run_files

WATCH = {
    "denoising_structures": 4,
    "denoising_sigmas": [0.05, 0.1],
    "figures_every": 2,
    "gradients_every": 4,
}
STEPS, EPOCHS = 6, 4  # steps of an epoch; the run resumes from the checkpoint of the second

TRAIN = {
    *("energy_mae", "forces_mae", "denoising_pos_mae", "denoising_forces_mae"),
    *("denoising_energy_mae", "corrupted_fraction", "loss", "loss_energy", "loss_forces"),
    *("loss_noise", "lr", "prob", "grad_norm", "skipped_steps", "epoch", "step"),
}
SHARES = {"gradient_share_energy", "gradient_share_forces", "gradient_share_noise"}
VAL = {"energy_mae", "forces_mae", "loss", "epoch", "step"} | {
    f"denoising_{what}/sigma={sigma}{end}"
    for what in ("pos_mae", "pos_cosine", "pos_explained_variance", "energy_mae")
    for sigma in ("0.05", "0.10")
    for end in ("", "/no_forces")
}
FIGURES = {
    *("noise_parity", "forces_parity", "error_by_sigma", "error_by_force", "forces_by_element"),
    *("structure_0", "structure_1"),
}
STAGES = {f"structure_0_{stage}" for stage in ("original", "corrupted", "denoised")}


def build(folder, epochs: int, **sections) -> DeNSTrainer:
    optim = {"max_epochs": EPOCHS, "watch": WATCH, "eval_every": STEPS}
    optim["dens"] = {**DENS, "clean_end": 0.25}  # the last epoch
    trainer = DeNSTrainer(
        **trainer_config(
            str(folder / "data"),
            model=EXACT_MODEL,
            optim=optim,
            is_debug=False,
            run_dir=str(folder),
            timestamp_id="the-run",
            **sections,
        )
    )
    trainer.config["optim"]["max_epochs"] = epochs
    return trainer


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of two epochs, resumed for one and then, as if that had been killed, for two."""
    folder = tmp_path_factory.mktemp("run")
    write_dataset(folder / "data", n=4 * STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        logger = {"name": "wandb", "project": "tests"}
        build(folder, 2, logger=logger).train(disable_eval_tqdm=True)
        checkpoint = folder / "checkpoints/the-run/checkpoint.pt"
        kept = checkpoint.read_bytes()
        end_wandb_run()
        for epochs in (3, EPOCHS):  # the third epoch is trained twice
            checkpoint.write_bytes(kept)
            trainer = build(folder, epochs, logger=logger)
            trainer.load_checkpoint(str(checkpoint))
            trainer.train(disable_eval_tqdm=True)
            end_wandb_run()
    return folder / "logs/wandb/the-run"


def test_wandb_has_every_metric_at_every_step_once(logged):
    rows = [row for file in run_files(logged, "the-run") for row in read_rows(file)]
    assert [row["_step"] for row in rows] == list(range(1, STEPS * EPOCHS + 1))
    seen = set()
    for row in rows:
        step, names = row["_step"], set(row)
        seen |= names
        assert names >= {f"train/{name}" for name in TRAIN if "mae" not in name}
        assert names >= ({f"train/{name}" for name in SHARES} if step % 4 == 0 else set())
        assert names >= ({f"val/{name}" for name in VAL} if step % STEPS == 0 else set())
        assert row["train/step"] == step
        if step > 3 * STEPS:
            assert row["train/prob"] == 0
    assert rows[0]["train/prob"] == DENS["prob"]
    assert seen >= {f"train/{name}" for name in TRAIN}
    assert seen >= {f"system/{name}" for name in ("structures_per_second", "atoms_per_second")}


def test_wandb_has_the_figures_that_are_due(logged):
    """Figures are due at every second evaluation, and at the last one of each start."""
    files = run_files(logged, "the-run")
    rows = {row["_step"]: row for file in files for row in read_rows(file)}
    media = logged.glob("wandb/*run*/files/media/*/val/figures/*")
    sizes = {path.name: path.stat().st_size for path in media}
    for step in range(STEPS, STEPS * EPOCHS + 1, STEPS):
        for name in FIGURES | STAGES:
            path = rows[step].get(f"val/figures/{name}.path")
            due = step in (2 * STEPS, 3 * STEPS, 4 * STEPS)
            assert (path is not None) == due, (name, step)
            if due:
                assert sizes[path.split("/")[-1]] > 500
    folder = logged / f"figures/val-{STEPS * EPOCHS:08d}"
    assert {png.stem for png in folder.glob("*.png")} == FIGURES
    for png in folder.glob("*.png"):
        with Image.open(png) as image:
            assert min(image.size) > 200


def test_the_metrics_file_agrees(logged):
    lines = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    keys = [(line["step"], line["split"]) for line in lines]
    assert len(keys) == len(set(keys))
    assert [step for step, split in keys if split == "train"] == list(range(1, 1 + STEPS * EPOCHS))
    assert [step for step, split in keys if split == "val"] == [STEPS * (i + 1) for i in range(4)]
    config = yaml.safe_load((logged / "config.yml").read_text())
    assert config["method"] == "DeNS"
    assert config["optim"]["watch"] == WATCH
    assert config["optim"]["scheduler_params"]["warmup_epochs"] == 1.0  # as given, not in steps
