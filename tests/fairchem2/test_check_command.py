"""``dens check`` of configs of fairchem-core 2: shipped ones are sound, and mistakes are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import CONFIGS
from helpers.program import run_program
from helpers.uma_checkpoint import REFERENCES, RMSD, write_uma
from omegaconf import OmegaConf

from dens.fairchem2.check.compose import compose

FOLDER = CONFIGS / "fairchem2"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TWINS = [name for name in NAMES if "\ndefaults:" in (FOLDER / f"{name}.yaml").read_text()]
UNIT = "runner.train_eval_unit"
BACKBONE = "++runner.train_eval_unit.model.backbone"
SMALL = [f"{BACKBONE}.{name}=8" for name in ("sphere_channels", "hidden_channels", "edge_channels")]
SMALL += [f"{BACKBONE}.num_layers=1", f"{BACKBONE}.num_distance_basis=8", "max_atoms=40"]


@pytest.fixture(scope="session")
def uma(tmp_path_factory) -> Path:
    return write_uma(tmp_path_factory.mktemp("uma") / "uma.pt")


def settings(name: str, data: Path, uma: Path) -> list[str]:
    """What makes a shipped config small enough for a test."""
    changes = ["job.device_type=CPU", "loader.num_workers=0"]
    if "demo" in name:
        return [*changes, *SMALL, f"data_root={data.parent}", "normalizer_rmsd=1.0"]
    changes += [f"train_src={data}", f"val_src={data}", f"elem_refs={REFERENCES}"]
    if name.startswith("uma"):
        return [*changes, f"checkpoint={uma}", "max_atoms=40"]
    return [*changes, *SMALL, "normalizer_rmsd=1.0"]


def check(name: str, data: Path, uma: Path, *changes: str) -> tuple[int, str]:
    return run_program("check", FOLDER / f"{name}.yaml", *settings(name, data, uma), *changes)


@pytest.fixture
def root(data, tmp_path) -> Path:
    """A folder of training data, beside one of the same for validation of the demo."""
    for split in ("train", "val_id"):
        shutil.copytree(data, tmp_path / "root" / split)
    return tmp_path / "root" / "train"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configs_are_sound(name, root, uma):
    status, output = check(name, root, uma)
    assert status == 0, output
    assert "\nerror" not in f"\n{output}"
    assert "ok     step: loss" in output, output
    assert ("denoising: " in output) == ("baseline" not in name and name != "esen_demo")
    assert ("by 0 to +15 % in fine-tuning" in output) == (name == "uma_finetune")
    if name.startswith("uma"):
        assert "heads and scales are those of the pretrained model" in output


@pytest.mark.parametrize(
    "name", [name for name in NAMES if (FOLDER / f"{name}.yaml").read_text().find("defaults:") >= 0]
)
def test_a_twin_differs_in_the_unit_and_its_settings_alone(name, data, uma):
    (twin,) = OmegaConf.load(FOLDER / f"{name}.yaml").defaults[:1]
    one, two = (
        OmegaConf.to_container(compose(FOLDER / f"{n}.yaml", settings(n, data, uma)))
        for n in (name, twin)
    )
    own = one["runner"]["train_eval_unit"]
    assert own.pop("_target_") == "dens.fairchem2.DeNSTrainEvalUnit"
    assert own.pop("dens")["prob"] > 0
    own.pop("watch", None)
    two["runner"]["train_eval_unit"].pop("_target_")
    for config in (one, two):
        del config["job"], config["runner"]["train_eval_unit"]["job_config"]
    assert one == two


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["++runner.train_eval_unit.dens.sigmaa=1"], "unknown key sigmaa = 1"),
        (
            ["++runner.train_eval_unit.clip_grad_nrom=1"],
            "clip_grad_nrom = 1 of dens.fairchem2.DeNS",
        ),
        (
            ["++runner.train_eval_unit.wacth={}"],
            "did you mean watch? (runner.train_eval_unit",
        ),
        (["~runner.train_eval_unit.optimizer_fn"], "optimizer_fn is missing, which dens.fairchem2"),
        ([f"{BACKBONE}.sphere_chanels=8"], "did you mean sphere_channels?"),
        (["++runner.max_step=8"], "did you mean max_steps? (runner.max_step)"),
        (["++transforms.comon_transform={}"], "unknown transform comon_transform: did you mean"),
        (["data_root=nowhere"], "nowhere/train does not exist"),
        (["tasks.0.datasets=[omat]", "tasks.1.datasets=[omat]"], "no task has their data set oc20"),
        (
            ["tasks.1.name=oc20_forces"],
            "they have no oc20_forces, the label of the task of that name; "
            "set key_mapping: {forces: oc20_forces}",
        ),
        ([f"{BACKBONE}.max_num_elements=20"], "the model takes 1 to 19"),
        (["runner.max_steps=null"], "expected runner.max_steps or runner.max_epochs, got neither"),
    ],
)
def test_mistakes_are_errors(changes, message, root, uma):
    status, output = check("esen_dens_demo", root, uma, *changes)
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["normalizer_rmsd=20.0"], "normaliser: forces: rmsd = 20, and the sample has"),
        (
            ["runner.train_eval_unit.ema_decay=0.9999"],
            "EMA: ema_decay = 0.9999 averages over 10000",
        ),
        (["runner.callbacks=[]"], "checkpoints: no checkpoint is written, not even the last one"),
        (
            ["runner.max_steps=50"],
            "steps: the learning rate is scheduled for 1200 steps and the run has 50",
        ),
        (["runner.train_eval_unit.dens.prob=0"], "denoising: prob is 0"),
    ],
)
def test_what_spoils_a_run_is_a_warning(changes, message, root, uma):
    status, output = check("esen_dens_demo", root, uma, *changes)
    assert status == 0, output
    assert f"warn   {message}" in output


def test_kept_heads_need_their_scales(data, uma):
    status, output = check("uma_finetune", data, uma, "normalizer_rmsd=1.0")
    assert status == 0, output
    assert "its head was trained with rmsd 1.423, not 1" in output
    assert f"`dens inspect {uma} --dataset oc20` prints them" in output
    heads = "++runner.train_eval_unit.model.heads={efs: {module: x}}"
    assert "new heads, with random weights" in check("uma_finetune", data, uma, heads)[1]
    assert "does not exist" in check("uma_finetune", data, uma, "checkpoint=nowhere.pt")[1]


def test_data_without_sizes_or_errors_in_validation_are_named(root, uma):
    (root / "metadata.npz").unlink()
    config = OmegaConf.load(FOLDER / "esen_demo.yaml")
    sections = config.runner.eval_dataloader.dataset.dataset_configs
    sections.own = sections.pop("oc20")
    own = root.parent / "own.yaml"
    OmegaConf.save(config, own)
    _, output = run_program("check", own, *settings("esen_demo", root, uma))
    assert "there is no metadata.npz with natoms" in output
    assert "validation: no errors of energy, forces: fairchem finds those of the data set" in output


def test_inspect_tells_what_a_checkpoint_holds(uma, tmp_path):
    status, output = run_program("inspect", uma)
    assert status == 0, output
    for part in (
        "eSCNMDMoeBackbone",
        "nothing: it is a stock model",
        "task oc20_forces",
        "rmsd 1.423",
    ):
        assert part in output
    _, output = run_program("inspect", uma, "--dataset", "oc20")
    scales = OmegaConf.create(output)
    assert scales.normalizer_rmsd == RMSD
    np.testing.assert_array_equal(scales.elem_refs[: len(REFERENCES)], REFERENCES)
    assert run_program("inspect", uma, "--dataset", "omol")[0] == 2
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert "is damaged, or no checkpoint" in run_program("inspect", tmp_path / "junk.pt")[1]
