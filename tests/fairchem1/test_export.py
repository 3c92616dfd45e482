"""Exported checkpoints: plain EquiformerV2, the same function, and no dens to run it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from checkpoint_files import STRESS, dens_trainer, plain_trainer, save
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from structures import make_structure
from trainers import MODEL, write_dataset

import dens.compat
from dens.cli import main
from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.checkpoints.export import export_checkpoint

WITHOUT_DENS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("stand_ins", sys.argv[1])
stand_ins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_ins)
stand_ins.install()  # torch_scatter and torch_sparse, where they are missing
sys.modules["dens"] = None
try:
    import dens
except ImportError:
    pass
else:
    raise SystemExit("dens can be imported")
import numpy as np, torch
from ase.io import read
from fairchem.core import OCPCalculator
calculator = OCPCalculator(checkpoint_path=sys.argv[2], cpu=True, seed=0)
results = {}
for i, atoms in enumerate(read(sys.argv[3], ":")):
    torch.manual_seed(i)
    calculator.calculate(atoms, ["energy"], [])
    for name, value in calculator.results.items():
        results[f"{name}{i}"] = value
np.savez(sys.argv[4], **results)
"""


def some_atoms(n):
    from ase import Atoms

    rng = np.random.default_rng(3)
    for i in range(n):
        data = make_structure(rng, [(2, 2, 2), (1, 2, 3)][i % 2])
        cell = data.cell[0].numpy()
        yield Atoms(data.atomic_numbers, data.pos.numpy(), cell=cell, pbc=True, tags=data.tags)


def trained(tmp_path, stress):
    """A DeNS model after a few steps, and its predictions for 20 structures."""
    fields = {"stress": torch.ones(1, 9)} if stress else {}
    src = write_dataset(tmp_path / "data", **fields)
    heads = {**MODEL["heads"], **(STRESS if stress else {})}
    trainer = dens_trainer(src, tmp_path / "run", {**MODEL, "heads": heads})
    trainer.train(disable_eval_tqdm=True)
    return trainer


def predict(trainer, structures):
    convert = AtomsToGraphs(r_energy=False, r_forces=False, r_distances=False, r_pbc=True)
    for i, atoms in enumerate(structures):
        batch = data_list_collater([convert.convert(atoms)], otf_graph=True)
        torch.manual_seed(i)  # the frames of edges are random
        yield trainer.predict(batch, per_image=False, disable_tqdm=True)


@pytest.mark.parametrize("stress", [False, True], ids=["", "stress"])
def test_round_trip_without_dens(tmp_path, stress):
    trainer = trained(tmp_path, stress)
    out = tmp_path / "eqv2.pt"
    export_checkpoint(save(trainer), out)
    with zipfile.ZipFile(out) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"dens" not in archive.read(pickled).lower()

    structures = list(some_atoms(20))
    write(tmp_path / "structures.traj", structures)
    arguments = [dens.compat.__file__, out, tmp_path / "structures.traj", tmp_path / "results.npz"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_DENS, *map(str, arguments)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
    )
    results = np.load(tmp_path / "results.npz")
    assert len(results) == 20 * (2 + stress)
    for i, expected in enumerate(predict(trainer, structures)):
        for name, value in expected.items():
            found = results[f"{name}{i}"].reshape(value.shape)
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-6, atol=1e-6)


def test_stock_trainer_validates_the_same(tmp_path):
    trainer = trained(tmp_path, stress=False)
    export_checkpoint(save(trainer), tmp_path / "eqv2.pt")
    stock = plain_trainer(str(tmp_path / "data"), tmp_path / "stock")
    stock.load_checkpoint(str(tmp_path / "eqv2.pt"))
    found = []
    for each in (trainer, stock):
        torch.manual_seed(0)
        metrics = each.validate(disable_tqdm=True)
        found.append({name: metrics[name]["metric"] for name in ("energy_mae", "forces_mae")})
    assert found[0] == pytest.approx(found[1], rel=1e-7)


def test_average_raw_and_bare_weights(tmp_path, capsys):
    from safetensors.torch import load_file

    trainer = trained(tmp_path, stress=False)
    path, name = save(trainer), "backbone.sphere_embedding.weight"
    with pytest.raises(SystemExit):
        main(["export", str(path), "--out", str(tmp_path / "ema.pt")])
    assert "stock EquiformerV2, outputs energy, forces" in capsys.readouterr().out
    export_checkpoint(path, tmp_path / "raw.pt", raw=True)
    export_checkpoint(path, tmp_path / "bare", bare=True)
    average, raw = (torch.load(tmp_path / f"{x}.pt", weights_only=True) for x in ("ema", "raw"))
    assert torch.equal(raw["state_dict"][name], trainer.model.backbone.sphere_embedding.weight)
    assert torch.equal(average["state_dict"][name], trainer.ema.shadow_params[0])
    assert not torch.equal(raw["state_dict"][name], average["state_dict"][name])
    bare = load_file(tmp_path / "bare")
    assert bare.keys() == average["state_dict"].keys()
    assert all(torch.equal(bare[key], average["state_dict"][key]) for key in bare)
    assert {k: v["rmsd"].item() for k, v in average["normalizers"].items()} == {
        "energy": 2.0,
        "forces": 1.5,
    }


def test_calculator_of_dens(tmp_path):
    """The weights that validation uses, and neither noise head nor encoding."""
    trainer = trained(tmp_path, stress=False)
    calculator = load_calculator(save(trainer), cpu=True)
    model = calculator.trainer._unwrapped_model
    assert set(model.output_heads) == {"energy", "forces"}
    assert model.backbone.force_encoding is None
    structures = list(some_atoms(2))
    for i, expected in enumerate(predict(trainer, structures)):
        torch.manual_seed(i)
        calculator.calculate(structures[i], ["energy"], [])
        assert calculator.results["energy"] == expected["energy"].item()
        np.testing.assert_array_equal(calculator.results["forces"], expected["forces"].numpy())


def test_the_checkpoint_is_not_overwritten(tmp_path):
    path = Path(tmp_path / "checkpoint.pt")
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="--out must be another file"):
        export_checkpoint(path, path)
