"""Exporting checkpoints: choice of weights, no overwriting. (test_stock.py runs exported ones.)"""

from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import save, trained

from dens.cli import main
from dens.fairchem1.checkpoints.export import export_checkpoint


def test_average_raw_and_bare_weights(tmp_path, capsys):
    from safetensors.torch import load_file

    trainer = trained(tmp_path)
    path, name = save(trainer), "backbone.sphere_embedding.weight"
    with pytest.raises(SystemExit):
        main(["export", str(path), "--out", str(tmp_path / "ema.pt")])
    assert "stock EquiformerV2, outputs energy, forces" in capsys.readouterr().out
    export_checkpoint(path, tmp_path / "raw.pt", raw=True)
    export_checkpoint(path, tmp_path / "new" / "folder" / "bare", bare=True)
    average, raw = (torch.load(tmp_path / f"{x}.pt", weights_only=True) for x in ("ema", "raw"))
    assert torch.equal(raw["state_dict"][name], trainer.model.backbone.sphere_embedding.weight)
    assert torch.equal(average["state_dict"][name], trainer.ema.shadow_params[0])
    assert not torch.equal(raw["state_dict"][name], average["state_dict"][name])
    bare = load_file(tmp_path / "new" / "folder" / "bare")
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1
    assert bare.keys() == average["state_dict"].keys()
    assert all(torch.equal(bare[key], average["state_dict"][key]) for key in bare)
    assert {k: v["rmsd"].item() for k, v in average["normalizers"].items()} == {
        "energy": 2.0,
        "forces": 1.5,
    }


def test_the_checkpoint_is_not_overwritten(tmp_path):
    path = Path(tmp_path / "checkpoint.pt")
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="--out must be another file"):
        export_checkpoint(path, path)
