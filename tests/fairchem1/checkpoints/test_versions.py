"""Checkpoints of every version of dens load, resume and export; newer ones are refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import dens_trainer, save
from helpers.paths import TESTS
from helpers.trainers import MODEL, write_dataset

from dens import __version__
from dens.fairchem1.checkpoints.export import export_checkpoint
from dens.fairchem1.checkpoints.inspect import inspect_checkpoint
from dens.fairchem1.checkpoints.layouts import DENS, read
from dens.fairchem1.checkpoints.model_sections import build
from dens.fairchem1.checkpoints.state import VERSION
from dens.safe.checkpoints import safe_load
from dens.settings import ConfigError

# Denoising validation of 0.1.0 drew from keys without their length; with these keys every number of
# a resumed run can be compared. Training draws from unchanged keys.
RESUME = """
import torch
from dens.random import Stream, make_generator
torch.set_num_threads(1)
Stream.generator = lambda self, seed, *key: make_generator(seed, self, *key)
from dens.cli import main
main()
"""
# Means of terms of either sign and of about 1: one near zero has the rounding of its terms, which
# is no small part of it.
SIGNED = re.compile("cosine|explained_variance")
STORED = sorted((TESTS / "files").iterdir())  # one folder for each released version


@pytest.fixture(params=STORED, ids=lambda folder: folder.name)
def stored(request) -> Path:
    return request.param


def logged(path: Path) -> dict[tuple[str, int], dict]:
    """Read the logged metrics after step 10, except speed and memory, by split and step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [line for line in lines if line["step"] > 10 and line["split"] != "system"]
    return {(line.pop("split"), line["step"]): line for line in kept}


def approximately(line: dict, rel: float) -> dict:
    """Return what metrics are compared with: each within ``rel`` of itself, signed ones of 1."""
    return {
        name: pytest.approx(value, rel=rel, abs=rel if SIGNED.search(name) else None)
        for name, value in line.items()
    }


def test_a_stored_checkpoint_is_read_and_inspected(stored):
    checkpoint = read(stored / "checkpoint.pt")
    assert checkpoint.layout == DENS
    assert "steps" not in checkpoint.content
    state = checkpoint.content["dens"]
    assert state["version"] == VERSION
    assert state["skipped_steps"] == 0
    assert isinstance(state["metrics"], dict)
    table = inspect_checkpoint(stored / "checkpoint.pt")
    assert f"{stored.name[1:]}, version {VERSION}" in table
    assert "1.0, 10" in table


def test_a_stored_checkpoint_is_resumed(stored, tmp_path, children_env):
    """Steps 11 to 20 end with the numbers of the run that wrote it."""
    write_dataset(tmp_path / "data", n=20)
    shutil.copy(stored / "config.yml", tmp_path)
    argv = ["--config", "config.yml", "--cpu", "--timestamp-id", "run", "--seed", "0"]
    argv += ["--checkpoint", str(stored / "checkpoint.pt")]
    command = [sys.executable, "-c", RESUME, *argv]
    done = subprocess.run(command, env=children_env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = logged(tmp_path / "logs" / "tensorboard" / "run" / "metrics.jsonl")
    expected = logged(stored / "metrics.jsonl")
    assert found.keys() == expected.keys()
    assert len([step for split, step in found if split == "train"]) == 10
    if not torch.__version__.startswith("2.4."):
        return  # its dropout draws other numbers than that of the torch that wrote the file
    for key, line in expected.items():
        assert found[key] == approximately(line, rel=1e-5), key


def test_a_stored_checkpoint_is_exported(stored, tmp_path):
    export_checkpoint(stored / "checkpoint.pt", tmp_path / "stock.pt")
    content = torch.load(tmp_path / "stock.pt", weights_only=True)
    assert not {"dens", "steps"} & set(content)
    model = build(content["config"]["model"])
    assert not type(model.backbone).__module__.startswith("dens")
    model.load_state_dict(content["state_dict"])


def test_new_checkpoints_carry_the_version(dataset, tmp_path):
    state = safe_load(save(dens_trainer(dataset, tmp_path / "run", MODEL)))["dens"]
    assert state == {
        "version": VERSION,
        "package": __version__,
        "metrics": {},
        "skipped_steps": 0,
        "sampling": {"structures": 8, "batch": 4},
    }


@pytest.mark.parametrize("state", [{"version": VERSION + 1}, {"version": "1"}, {}, 3])
def test_other_versions_are_refused(dataset, tmp_path, state):
    torch.save({"state_dict": {"backbone.x": torch.ones(1)}, "dens": state}, tmp_path / "new.pt")
    message = f"new.pt must be a checkpoint of version 0 to {VERSION} of dens, got version "
    with pytest.raises(ValueError, match=message) as error:
        inspect_checkpoint(tmp_path / "new.pt")
    assert "\n" not in str(error.value)
    trainer = dens_trainer(dataset, tmp_path / "run", MODEL)
    with pytest.raises(ConfigError, match=message):
        trainer.load_checkpoint(str(tmp_path / "new.pt"))
