"""``dens check`` reports each problem of a run in one line, and leaves no files."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.checkpoint_files import new_trainer
from helpers.structures import make_structure
from helpers.trainers import DENS, MODEL, STOCK_MODEL, file_config, trainer_config

from dens import cli
from dens.data.store.lmdb import LmdbWriter
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.check import command as checkup
from dens.fairchem1.check.command import check_command

N_TRAIN, N_VAL = 24, 6
NORMALIZER = {"energy": {"mean": 0.0, "stdev": 1.0}, "forces": {"mean": 0.0, "stdev": 1.0}}


def write_split(folder: Path, n: int, seed: int, change=lambda i, data: None) -> str:
    """Write random structures as a data set on disk; ``change`` edits each record first."""
    rng = np.random.default_rng(seed)
    with LmdbWriter(folder) as writer:
        for i in range(n):
            data = make_structure(rng, (2, 2, 2), sid=i)
            data.y, data.force = data.energy, data.forces
            del data.energy, data.forces
            change(i, data)
            writer.write(data)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": write_split(folder / "train", N_TRAIN, 0),
        "val": write_split(folder / "val", N_VAL, 1),
    }


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_step(monkeypatch) -> None:
    """Skip the training step, for findings before the trainer is built."""
    monkeypatch.setattr(checkup, "_check_step", lambda *args: None)


def write_config(data: dict[str, str], **changes) -> Path:
    """Write a sound config of the small model and data; `__` in keys of ``changes`` means a dot.

    Its 6 steps an epoch make 60 in 10 epochs, more than five horizons of its EMA.
    """
    base = trainer_config(data["train"])
    config = file_config(
        base,
        optim=base["optimizer"] | {"max_epochs": 10},
        dataset=base["dataset"] | {"val": {"src": data["val"]}},
        logger="tensorboard",
    )
    config["dataset"]["train"]["transforms"] = {"normalizer": NORMALIZER}
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for name in path:
            section = section[name]
        section[last] = value
        if value is None:
            del section[last]
    Path("config.yml").write_text(yaml.safe_dump(config))
    return Path("config.yml")


def findings(capsys, *args, **options) -> list[str]:
    """Run a check and return its lines; the last one must agree with the result."""
    passed = check_command(*args, **options)
    *lines, last = capsys.readouterr().out.splitlines()
    assert passed == last.startswith("ready to train")
    assert passed == (not any(line.startswith("error") for line in lines))
    return lines


def line_of(lines: list[str], start: str) -> str:
    (line,) = [line for line in lines if line.startswith(start)]
    return line


def test_a_sound_config_passes_with_the_right_numbers(data, workplace, capsys):
    config = write_config(data)
    lines = findings(capsys, config)
    assert all(line.startswith("ok ") for line in lines), lines
    steps = line_of(lines, "ok     steps")
    assert "6 steps an epoch (24 structures, 4 on each of 1 rank), 60 in 10 epochs, 6 of" in steps
    assert "24 train structures read: energy, forces, all finite" in "\n".join(lines)
    assert "2 kinds, up to Cu (29); the model takes 1 to 89" in line_of(lines, "ok     elements")
    step = line_of(lines, "ok     step:")
    trainer = DeNSTrainer(**trainer_config(data["train"]))
    parameters = list(trainer.model.parameters())
    n_weights = sum(p.numel() for p in parameters)
    assert "forward with corruption and backward" in step
    assert f"all {len(parameters)} tensors of {n_weights:,} parameters" in step
    memory = line_of(lines, "ok     memory")
    # AdamW keeps two numbers for each weight, and a count for each tensor
    optimizer = 4 * (2 * n_weights + len(parameters)) / 1e3
    assert f"optimizer {optimizer:.3g} kB" in memory
    assert "with 4 average structures (36 atoms)" in memory
    assert "the 4 largest (36 atoms)" in memory
    assert sorted(os.listdir()) == ["config.yml"]


def test_the_schedule_of_the_corruption(data, workplace, without_step, capsys):
    dens = {**trainer_config(data["train"])["optimizer"]["dens"], "clean_end": "auto"}
    lines = findings(capsys, write_config(data, optim__dens=dens, optim__max_epochs=20))
    assert any("corrupted from epoch 0 to 10 of 20" in line for line in lines)
    assert any("24 structures in 20 epochs: DeNS changed" in line for line in lines)
    assert not any("in fine-tuning" in line for line in lines)


def test_what_to_expect_of_fine_tuning(data, workplace, without_step, capsys):
    Path("plain.pt").touch()
    lines = findings(capsys, write_config(data, model__pretrained="plain.pt"))
    assert any("by 0 to +15 % in fine-tuning" in line for line in lines), lines


def test_memory_grows_with_the_atoms(data, workplace, capsys, monkeypatch):
    """Memory of activations is proportional to atoms, so a small step predicts a large one."""

    def per_atom(atoms: int) -> float:
        monkeypatch.setattr("dens.fairchem1.check.step.ATOMS_ON_CPU", atoms)
        memory = line_of(findings(capsys, write_config(data)), "ok     memory")
        assert f"{atoms} atoms)" in memory
        (number,) = re.findall(r"and (\S+) kB an atom", memory)
        return float(number)

    assert per_atom(9) == pytest.approx(per_atom(36), rel=0.1)


def test_ranks_share_the_data(data, workplace, without_step, capsys):
    lines = findings(capsys, write_config(data), num_gpus=4)
    steps = [line for line in lines if "steps:" in line]
    assert "2 steps an epoch (24 structures, 4 on each of 4 ranks), 20 in 10 epochs" in steps[0]


def test_accumulated_micro_batches_are_one_step(data, workplace, capsys):
    overrides = ["--optim.batch_size=2", "--optim.grad_accumulation_steps=2"]
    lines = findings(capsys, write_config(data), overrides=overrides)
    assert all(line.startswith("ok ") for line in lines), lines
    assert "6 steps an epoch (24 structures, 4 on each" in line_of(lines, "ok     steps")
    assert "2 structures of 18 atoms" in line_of(lines, "ok     step:")


def no_forces(i, data):
    del data.force


def nan_label(i, data):
    if i in (3, 5):
        data.force[1, 2] = math.nan


def no_fixed(i, data):
    del data.fixed


def no_tags(i, data):
    del data.tags


def none_fixed(i, data):
    data.fixed[:] = 0


def all_fixed(i, data):
    if i == 2:
        data.fixed[:] = 1


def heavy(i, data):
    if i == 7:
        data.atomic_numbers[0] = 92


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            no_forces,
            "error  labels: 24 of 24 train structures looked at: forces is missing: record",
        ),
        (
            nan_label,
            "error  labels: 2 of 24 train structures looked at: forces must be finite, got NaN or ",
        ),
        (
            no_fixed,
            "error  labels: 24 of 24 train structures looked at: fixed is missing: record",
        ),
        (
            all_fixed,
            "error  labels: 1 of 24 train structures looked at: no atom is free: record 2 sid=2",
        ),
        (no_tags, "warn   labels: train structures have no tags: relaxations need them"),
        (none_fixed, "warn   labels: 24 of 24 train structures have sub-surface atoms (tag 0)"),
        (heavy, "error  elements: atomic number 92 in 1 of 24 train structures looked at "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_faults_of_the_data(change, finding, data, workplace, without_step, capsys):
    train = write_split(workplace / "other", N_TRAIN, 0, change)
    line_of(findings(capsys, write_config({**data, "train": train})), finding)


WRONG = [
    ({"optim__dens": {**DENS, "sigmas": 1}}, "error  settings: unknown key sigmas = 1 (optim.dens"),
    (
        {"evaluation_metrics__primary_metric": "mae"},
        "error  settings: evaluation_metrics.primary_metric must be one of loss, energy_mae, ",
    ),
    ({"optim__num_workers": None}, "error  settings: optim.num_workers is missing"),
    (
        {"optim__bath_size": 8},
        "error  settings: unknown key bath_size = 8 (optim.bath_size): did",
    ),
    ({"dataset__train__src": "gone"}, "error  data: no data there: dataset.train.src = gone"),
    (
        {"optim__scheduler_params__warmup_epochs": 0.1},
        "error  steps: warmup_epochs must be at least one step, and an epoch has 6: got 0.1",
    ),
    (
        {"optim__scheduler_params__warmup_epochs": 11.0},
        "warn   steps: warm-up takes 66 steps and the run has 60",
    ),
    (
        {"optim__ema_decay": 0.999},
        "warn   EMA: ema_decay = 0.999 averages over 1000 updates and the run has 60: validation "
        "and checkpoints use this average, 94% of which would still be the untrained weights",
    ),
    ({"optim__eval_every": 61}, "warn   validation: every 61 steps, and the run has 60"),
    ({"optim__checkpoint_every": 61}, "warn   checkpoints: every 61 steps, and the run has 60"),
    (
        {"optim__batch_size": 25},
        "warn   steps: a batch takes 25 structures (25 x 1 rank), and there are 24",
    ),
    ({"dataset__val": None}, "warn   validation: dataset.val.src is not given"),
    ({"optim__dens": {**DENS, "prob": 0}}, "warn   denoising: prob is 0: DeNS is off"),
    (
        {"optim__dens": {**DENS, "max_force_norm": 0.1, "min_num_atoms": 2}},
        "warn   denoising: only 0% of the sampled structures can ever be corrupted, so DeNS would "
        "hardly be trained; excluded by: min_num_atoms = 2 (0%), max_force_norm = 0.1 (100%)",
    ),
    (
        {"optim__dens": {**DENS, "exclude_md": True}},
        "error  denoising: 24 of 24 structures have no md, which exclude_md reads",
    ),
]


@pytest.mark.parametrize(("changes", "finding"), WRONG, ids=[f[:50] for _, f in WRONG])
def test_wrong_settings(changes, finding, data, workplace, without_step, capsys):
    line_of(findings(capsys, write_config(data, **changes)), finding)


def normalizer(target: str, **changes) -> dict:
    return {"normalizer": {**NORMALIZER, target: {**NORMALIZER[target], **changes}}}


SCALES = [
    (normalizer("energy", stdev=10.0), r"warn   energy: stdev 10 is 1\d(\.\d+)? times too large"),
    (normalizer("forces", stdev=0.1), r"warn   forces: stdev 0.1 is (9|1\d)\S* times too small"),
    (normalizer("energy", mean=-500.0), "warn   energy: mean -500 is .*; total energies need"),
    (normalizer("forces", mean=0.1), "warn   forces: mean 0.1 must be 0: it is not equivariant"),
    ({}, "ok     energy: no normaliser; in the sample mean"),
    (
        {**normalizer("energy"), "element_references": {"energy": {"file": "refs.npz"}}},
        "warn   energy: no reference, or 0, for O, which the data have",
    ),
]


@pytest.mark.parametrize(("transforms", "finding"), SCALES, ids=[f[:40] for _, f in SCALES])
def test_normalisers_that_are_off(transforms, finding, data, workplace, without_step, capsys):
    references = np.zeros(119)
    references[29] = 1e-6
    np.savez("refs.npz", coeff=references)
    config = write_config(data, dataset__train__transforms=transforms)
    lines = findings(capsys, config)
    assert [line for line in lines if re.match(finding, line)], lines


def test_molecules_need_no_fixed_atoms(data, workplace, without_step, capsys):
    def as_molecule(i, data):
        data.fixed[:], data.tags[:] = 0, 0

    train = write_split(workplace / "other", N_TRAIN, 0, as_molecule)
    lines = findings(capsys, write_config({**data, "train": train}))
    assert all(line.startswith("ok ") for line in lines), lines


def test_names_that_are_not_mapped(data, workplace, without_step, capsys):
    config = write_config(data, dataset__train__key_mapping={"y": "energy"})
    line = line_of(findings(capsys, config), "error  labels: 24 of 24 train structures looked at")
    assert "forces is missing: record " in line
    assert line.endswith("tags; set dataset.train.key_mapping to force: forces)")


def test_bad_records_that_are_skipped_are_no_error(data, workplace, without_step, capsys):
    train = write_split(workplace / "other", N_TRAIN, 0, nan_label)
    config = write_config({**data, "train": train}, dataset__train__on_bad="skip")
    line_of(findings(capsys, config), "warn   labels: 2 of 24 train structures looked at: forces")


def test_validation_on_the_training_set(data, workplace, without_step, capsys):
    config = write_config({**data, "val": data["train"] + "/."})
    line_of(findings(capsys, config), "warn   data: validation reads the training set, ")


def test_every_error_is_said_at_once(data, workplace, capsys):
    config = write_config(
        data,
        optim__dens={**DENS, "sigma": -1},
        optim__ema_decay=0.999,
        dataset__val={"src": "gone"},
        dataset__train__transforms=normalizer("energy", stdev=10.0),
    )
    lines = findings(capsys, config)
    line_of(lines, "error  settings: sigma must be a number > 0")
    line_of(lines, "error  data: no data there: dataset.val.src = gone")
    line_of(lines, "warn   energy: stdev 10")
    line_of(lines, "warn   EMA")
    line_of(lines, "warn   step: not tried: the errors above come first")


SEVERAL = ["--model.backbone.lmax_list=[2,2]", "--model.backbone.mmax_list=[2,2]"]  # resolutions


def test_errors_of_the_trainer_and_of_its_step(data, workplace, capsys, monkeypatch):
    config = write_config(data)
    lines = findings(capsys, config, overrides=SEVERAL)
    assert [line for line in lines if line.startswith("error  trainer: ")], lines

    loss_of = DeNSTrainer._compute_loss

    def nan_loss(self, out, batch):
        return math.nan * loss_of(self, out, batch)

    def partial_loss(self, out, batch):
        return 0 * loss_of(self, out, batch).detach() + out["energy"].sum()

    monkeypatch.setattr(DeNSTrainer, "_compute_loss", nan_loss)
    lines = findings(capsys, config)
    line_of(lines, "error  step: the loss of the first step is nan")
    monkeypatch.setattr(DeNSTrainer, "_compute_loss", partial_loss)
    line = line_of(findings(capsys, config), "error  step: ")
    assert "got no gradient, on which a run of several ranks stops: " in line
    assert "heads.forces" in line


def test_stock_runs_and_checkpoints_are_checked_too(data, workplace, capsys):
    stock = {"trainer": "equiformerv2_forces", "model": STOCK_MODEL, "optim__dens": None}
    lines = findings(capsys, write_config(data, **stock))
    assert all(line.startswith("ok ") for line in lines), lines
    assert "forward and backward" in line_of(lines, "ok     step:")
    trainer = new_trainer("dens", data["train"], workplace / "run", model=MODEL, dens=DENS)
    good = trainer.save(checkpoint_file="checkpoint.pt")
    lines = findings(capsys, write_config(data), checkpoint=Path(good))
    assert all(line.startswith("ok ") for line in lines), lines
    torch.save({"state_dict": {}}, "w.pt")
    lines = findings(capsys, write_config(data), checkpoint=Path("w.pt"))
    assert line_of(lines, "error  trainer: ")
    lines = findings(capsys, write_config(data), checkpoint=Path("gone.pt"))
    line_of(lines, "error  data: --checkpoint gone.pt does not exist")


def test_the_command(data, workplace, capsys):
    """The command sets its exit status and restores logging afterwards."""
    root = logging.getLogger()
    before = root.level
    config = write_config(data)
    for overrides, status in (["--optim.ema_decay=0.99"], 0), (["--optim.dens.sigma=-1"], 2):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["check", str(config), "--sample", "5", "--num-gpus", "2", *overrides])
        assert (exit_.value.code or 0) == status
    out = capsys.readouterr().out
    assert "5 train structures read" in out
    assert "1 warning (" in out
    assert "not ready: 1 error, " in out
    assert (root.level, root.manager.disable) == (before, logging.NOTSET)
    assert not torch.distributed.is_initialized()
    assert sorted(os.listdir()) == ["config.yml"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["check", "gone.yml"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: cannot read gone.yml")
