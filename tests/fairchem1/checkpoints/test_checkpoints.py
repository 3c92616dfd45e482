"""Reading checkpoints: hostile, damaged and unknown files are refused; inspect and export."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import dens_trainer, plain_trainer, save
from helpers.trainers import MODEL

from dens.cli import main
from dens.fairchem1.checkpoints.export import export_checkpoint
from dens.fairchem1.checkpoints.inspect import inspect_checkpoint
from dens.safe.checkpoints import safe_load


class Hostile:
    """Object that makes a folder when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("it_ran",))


class Custom:
    pass


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DENS_TRUST_FILES", raising=False)


NOT_NEEDED = "which a checkpoint does not need; none of its code was run"
DAMAGED = "cannot be read as a checkpoint: it is damaged or of another kind"
CONTENTS = {
    "hostile": ({"state_dict": Hostile()}, f"asks for posix.mkdir, {NOT_NEEDED}"),
    "class": ({"config": Custom()}, f"test_checkpoints.Custom, {NOT_NEEDED}"),
    "model": ({"model": torch.nn.Linear(1, 1)}, f"torch.nn.modules.linear.Linear, {NOT_NEEDED}"),
    "list": ([1, 2], "is no checkpoint: expected a dictionary, got list"),
    "no weights": ({"config": {}, "step": 3}, "holds no model: expected state_dict, got config, s"),
    "other model": (
        {"state_dict": {"module.atom_emb.weight": torch.ones(3)}},
        "is no checkpoint of a known layout and model (EquiformerV2, eSCN, eSEN): expected "
        "backbone.* and output_heads.*, or sphere_embedding, energy_block and blocks, got atom_emb",
    ),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_refused_contents(capsys, content, message, old_format):
    torch.save(content, "file.pt", _use_new_zipfile_serialization=not old_format)
    for command in (["inspect", "file.pt"], ["export", "file.pt", "--out", "out.pt"]):
        with pytest.raises(SystemExit) as error:
            main(command)
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert not Path("it_ran").exists()
    assert not Path("out.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world\n", DAMAGED),
        (b"", DAMAGED),
        (None, "file.pt does not exist"),
        ("half", DAMAGED),
    ],
)
def test_refused_files(content, message):
    if content == "half":
        torch.save({"state_dict": torch.ones(1000)}, "file.pt")
        content = Path("file.pt").read_bytes()[:2000]
    if content is not None:
        Path("file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        safe_load("file.pt")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["inspect", "folder"],
            "folder is a folder: expected a checkpoint, such as folder/ch",
        ),
        (["inspect", "text.json"], f"text.json {DAMAGED}"),
        (["export", "folder", "--out", "out.pt"], "folder is a folder: expected a checkpoint"),
        (["export", "text.json", "--out", "out.pt"], f"text.json {DAMAGED}"),
        (["export", "text.json", "--out", "folder"], "--out must be a file, got the folder folder"),
        (
            ["export", "text.json", "--out", "folder/../text.json"],
            "--out must be another file",
        ),
        (["export", "none.pt", "--out", "text.json"], "checkpoint none.pt does not exist"),
    ],
)
def test_commands_on_what_is_no_checkpoint(capsys, command, message):
    Path("folder").mkdir()
    Path("text.json").write_text("{}")
    with pytest.raises(SystemExit) as error:
        main(command)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert Path("text.json").read_text() == "{}"
    assert not Path("out.pt").exists()


def test_a_file_can_be_trusted(monkeypatch):
    torch.save({"config": Custom()}, "file.pt")
    monkeypatch.setenv("DENS_TRUST_FILES", "1")
    assert isinstance(safe_load("file.pt")["config"], Custom)


def test_numpy_numbers_of_older_checkpoints():
    """Numpy numbers are read, and PyTorch's allow-list is restored afterwards."""
    before = list(torch.serialization.get_safe_globals())
    content = {"best_val_metric": np.float64(1.5), "step": np.int64(3), "done": np.bool_(True)}
    torch.save(content, "file.pt")
    assert safe_load("file.pt") == content
    assert set(torch.serialization.get_safe_globals()) == set(before)


def changed(path, **changes):
    content = {**torch.load(path, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, "changed.pt")
    return Path("changed.pt")


def test_what_cannot_be_exported(dataset, tmp_path):
    path = save(plain_trainer(dataset, tmp_path / "run"))
    config = torch.load(path, weights_only=True)["config"]
    with pytest.raises(ValueError, match="average and no config to assign it by"):
        export_checkpoint(changed(path, config=None), tmp_path / "out.pt")
    with pytest.raises(ValueError, match="holds no config, without which it cannot be exported"):
        export_checkpoint(changed(path, config=None, ema=None), tmp_path / "out.pt")
    ema = {"decay": 0.9, "shadow_params": [torch.ones(3)]}
    with pytest.raises(ValueError, match=r"\(ema\) has 1 tensors that do not fit the \d+ trained"):
        export_checkpoint(changed(path, ema=ema), tmp_path / "out.pt")
    Path("text").write_text("")
    with pytest.raises(ValueError, match=r"--out text/out\.pt cannot be written: "):
        export_checkpoint(changed(path, ema=None), Path("text/out.pt"))
    config["model"]["backbone"]["model"] = "painn_backbone"
    with pytest.raises(ValueError, match="expected one of EquiformerV2, eSCN, eSEN, got 'painn"):
        export_checkpoint(changed(path, config=config), tmp_path / "out.pt")


def test_inspect(dataset, tmp_path):
    trainer = dens_trainer(dataset, tmp_path / "run", MODEL)
    trainer.step, trainer.epoch = 12, 1.5
    rows = inspect_checkpoint(save(trainer)).splitlines()
    table = {row.split("  ")[0]: row.split("  ")[-1].strip() for row in rows}
    expected = {
        "layout": "dens",
        "lmax": "2",
        "mmax": "2",
        "num_layers": "1",
        "sphere_channels": "8",
        "max_num_elements": "90",
        "cutoff": "4.0 Å",
        "heads": "energy (energy), forces (forces), noise (noise)",
        "force encoding": "forces",
        "DeNS settings": "prob 0.5, corrupt_ratio 0.5, sigma 0.1, denoising_coefficient 10.0",
        "epoch, step": "1.5, 12",
        "best metric": "forces_mae 1",
        "normaliser of energy": "mean -0.5, rmsd 2",
        "moving average (ema)": "yes, decay 0.9",
    }
    assert {key: table[key] for key in expected} == expected
