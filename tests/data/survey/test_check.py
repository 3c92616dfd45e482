"""``dens data check`` reports each defect, and none in good data."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import lmdb
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers.labelled import label, molecules, slabs
from matplotlib import image
from torch_geometric.data import Data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.cli import data as command
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import atoms_to_data
from dens.fairchem1.data.datasets import ConfigReader


def run(*arguments: object):
    return CliRunner().invoke(command, [*map(str, arguments)], obj=ConfigReader)


def records(n: int = 4) -> list[Data]:
    """Make good records with energies near zero."""
    frames = slabs(n)
    return [atoms_to_data(frame, sid=7, fid=i, energy=0.1 * i) for i, frame in enumerate(frames)]


def write(path: Path, data: list[Data]) -> Path:
    with LmdbWriter(path) as writer:
        for record in data:
            writer.write(record)
    return path


def findings(*arguments: object) -> tuple[int, dict[str, dict]]:
    """Run the command; return its exit status and its findings by kind."""
    result = run("check", *arguments, "--json")
    (report,) = json.loads(result.output)
    assert report["ok"] == (result.exit_code == 0)
    return result.exit_code, {finding["kind"]: finding for finding in report["findings"]}


def test_good_data(tmp_path):
    result = run("check", write(tmp_path / "train", records()), "--plot", tmp_path / "f.png")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"{tmp_path / 'train'}: 4 structures of 10 to 10 atoms, 10.0 on average"
    assert lines[1] == "elements (structures with them): O 4 Cu 4"
    assert lines[-1] == "ok"
    assert not [line for line in lines if line.startswith(("warning", "error"))]
    assert image.imread(tmp_path / "f.png").shape[2] == 4


def test_histogram_counts_free_atoms(tmp_path):
    data = records(2)
    for record in data:
        record.force = torch.zeros(10, 3)
        record.force[0, 0] = 1e4  # fixed
        record.force[4] = torch.tensor([3.0, 4.0, 0.0])
    (report,) = json.loads(run("check", write(tmp_path / "a", data), "--json").output)
    forces = report["forces"]
    counts = dict(zip(np.round(forces["edges"], 3), forces["counts"], strict=True))
    assert {edge: count for edge, count in counts.items() if count} == {0.0: 12, 3.162: 2}
    assert forces["max"] == 5.0
    assert forces["rms"] == pytest.approx(np.sqrt(25 / 21))


def overlap(data: Data) -> None:
    data.pos[5] = data.pos[4] + torch.tensor([0.3, 0, 0])


def isolate(data: Data) -> None:
    data.pos[9, 2] += 30.0
    data.cell *= 10.0


DEFECTS = {
    "no energy": lambda data: delattr(data, "y"),
    "no forces": lambda data: setattr(data, "force", data.force[:-1]),
    "not finite": lambda data: data.force.__setitem__((4, 0), torch.nan),
    "bad element": lambda data: data.atomic_numbers.__setitem__(2, 119),
    "no free atom": lambda data: data.fixed.fill_(1),
    "no cell": lambda data: data.cell.__setitem__((0, 1), data.cell[0, 0]),
    "overlap": overlap,
    "large force": lambda data: data.force.__setitem__((4, 0), 51.0),
    "isolated": isolate,
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects(tmp_path, kind):
    data = records()
    DEFECTS[kind](data[2])
    code, found = findings(write(tmp_path / "train", data), "--cutoff", 12)
    assert list(found) == [kind]
    assert found[kind]["count"] == 1
    assert found[kind]["examples"] == ["record 2 sid=7 fid=2"]
    assert code == (0 if found[kind]["level"] == "warning" else 1)
    assert found[kind]["level"] == ("warning" if kind in ("large force", "isolated") else "error")


def test_nearly_parallel_cell_vectors(tmp_path):
    data = records()
    data[2].cell[0, 1] = data[2].cell[0, 0] + torch.tensor([0.0, 1e-6, 0.0])
    code, found = findings(write(tmp_path / "train", data))
    assert (code, list(found)) == (1, ["no cell"])


@pytest.mark.parametrize("where", ["energy", "pos", "cell"])
def test_infinity_anywhere(tmp_path, where):
    data = records()
    if where == "energy":
        data[1].y = np.inf
    else:
        data[1][where].view(-1)[3] = torch.inf
    code, found = findings(write(tmp_path / "train", data))
    assert (code, found["not finite"]["examples"]) == (1, ["record 1 sid=7 fid=1"])


def test_damaged_record(tmp_path):
    path = write(tmp_path / "train", records())
    file = lmdb.open(str(path / "data.0000.lmdb"), subdir=False, lock=False)
    with file, file.begin(write=True) as transaction:
        transaction.put(b"1", b"damaged")
    code, found = findings(path)
    assert code == 1
    assert found["unreadable"]["count"] == 1
    assert found["unreadable"]["examples"][0].startswith("record 1: BadRecord: ")
    assert "UnpicklingError" in found["unreadable"]["examples"][0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pos", torch.zeros(30), "pos must be (n_atoms, 3), got shape (30,)"),
        ("natoms", 7, "natoms must be 10, as many as pos has, got 7"),
        ("tags", torch.zeros(9), "tags must be (10,), got shape (9,)"),
        ("y", torch.zeros(2), "y must be 1 numbers, got shape (2,)"),
    ],
)
def test_malformed_records(tmp_path, field, value, message):
    data = records()
    data[2][field] = value
    code, found = findings(write(tmp_path / "train", data))
    assert code == 1
    assert found["unreadable"]["examples"] == [f"record 2 sid=7 fid=2: {message}"]


def test_copies(tmp_path):
    data = records(5)
    data[3] = data[1].clone()
    write(tmp_path / "data" / "train", data[:4])
    write(tmp_path / "data" / "val", [data[4], data[0].clone()])
    result = run("check", tmp_path / "data", "--json")
    assert result.exit_code == 0
    train, val = (report["findings"] for report in json.loads(result.output))
    assert [(finding["kind"], finding["examples"]) for finding in train] == [
        ("duplicate", ["record 3 sid=7 fid=1 of record 1 sid=7 fid=1"])
    ]
    assert [(finding["kind"], finding["examples"]) for finding in val] == [
        ("shared", ["record 1 sid=7 fid=0 of record 0 sid=7 fid=0 in train"])
    ]


def test_metadata(tmp_path):
    path = write(tmp_path / "train", records())
    np.savez(path / "metadata.npz", natoms=np.array([10, 10, 11, 10]))
    code, found = findings(path)
    assert (code, found["metadata"]["examples"]) == (1, ["record 2: 11 for 10 atoms"])
    np.savez(path / "metadata.npz", natoms=np.array([10, 10]))
    code, found = findings(path)
    assert (code, found["metadata"]["examples"]) == (1, ["natoms has 2 entries for 4 records"])
    (path / "metadata.npz").unlink()
    code, found = findings(path)
    assert (code, list(found)) == (0, ["no metadata"])


def test_total_energies(tmp_path):
    frames = slabs(3)
    _, found = findings(
        write(tmp_path / "a", [atoms_to_data(f, sid=0, fid=i) for i, f in enumerate(frames)])
    )
    assert "eV per atom" in found["no reference"]["examples"][0]
    data = records()
    data[1].y = -17_000.0
    _, found = findings(write(tmp_path / "b", data))
    assert found["no reference"]["examples"] == ["energies up to 17000 eV, +-0.98 meV"]


def moving(n: int, energy_unit: float = 1.0) -> list[Data]:
    """Make frames of an atom that oscillates along x, with a spring constant of 10 eV/Å^2."""
    (frame,) = slabs(1)
    rest = frame.positions[5, 0]
    data = []
    for i in range(n):
        x = 0.3 * np.sin(0.1 * i)
        frame.positions[5, 0] = rest + x
        forces = np.zeros((10, 3))
        forces[5, 0] = -10 * x
        label(frame, 5 * x**2 / energy_unit, forces)
        data.append(atoms_to_data(frame, sid=0, fid=i))
    return data


def test_energies_and_forces_of_different_units(tmp_path):
    assert findings(write(tmp_path / "good", moving(30)))[1] == {}
    _, found = findings(write(tmp_path / "bad", moving(30, energy_unit=0.0433641)))
    assert found["units"]["examples"] == [
        "energies change 23.1 times as much from frame to frame as forces say: "
        "energies, forces and positions of different units?"
    ]


SIGNS = {
    "in order": ({}, lambda data: data),
    "shuffled": ({}, lambda data: [data[i] for i in np.random.default_rng(0).permutation(30)]),
    "other units": ({"energy_unit": 0.0433641}, lambda data: data),
    "noise": ({"noise": 0.02}, lambda data: data),
    "few frames per system": ({}, lambda data: [few(data[i], i) for i in range(30)]),
}


def few(data: Data, i: int) -> Data:
    """Give every two frames another cell."""
    data.cell[0, 2, 2] += i // 2
    return data


@pytest.mark.parametrize(("settings", "order"), SIGNS.values(), ids=SIGNS)
def test_gradients_in_the_place_of_forces(tmp_path, settings, order):
    units = {name: value for name, value in settings.items() if name != "noise"}
    data, noise = order(moving(30, **units)), settings.get("noise", 0)
    rng = np.random.default_rng(0)
    for record in data:
        record.y += noise * rng.normal()
    assert "signs" not in findings(write(tmp_path / "forces", data))[1]
    for record in data:
        record.force = -record.force
    code, found = findings(write(tmp_path / "gradients", data))
    assert (code, found["signs"]["level"]) == (0, "warning")
    assert "gradients in the place of forces?" in found["signs"]["examples"][0]


def test_units_of_molecules(tmp_path):
    frames = molecules(3)
    data = [atoms_to_data(f, sid=0, fid=i, energy=-97_195.0) for i, f in enumerate(frames)]
    _, found = findings(write(tmp_path / "kcal", data))
    assert found["units"]["examples"] == ["3 energies are those of all electrons in kcal/mol"]
    data = [atoms_to_data(f, sid=0, fid=i, energy=0.0) for i, f in enumerate(frames)]
    for record in data:
        record.pos /= 0.529177
    _, found = findings(write(tmp_path / "bohr", data))
    assert "positions in Bohr" in found["units"]["examples"][0]
    for record in data:
        record.pos *= 0.529177
        record.force *= 23.06
    _, found = findings(write(tmp_path / "forces", data))
    assert "kcal/mol/Å or meV/Å?" in found["units"]["examples"][0]


def test_fields_that_differ_and_open_structures(tmp_path):
    data = records()
    data[1].charge = 1
    data[2].pbc = torch.zeros(1, 3, dtype=torch.bool)
    code, found = findings(write(tmp_path / "train", data))
    assert code == 0
    assert found["fields"]["examples"] == ["charge in 1 of 4"]
    assert found["open"]["examples"] == ["record 2 sid=7 fid=2"]
    for record in data:
        del record.cell, record.fixed
    data[2] = records()[2]
    code, found = findings(write(tmp_path / "b", data))
    assert (code, found["no fixed"]["count"], found["no cell"]["count"]) == (1, 3, 3)


def test_renamed_labels(tmp_path):
    """Labels have the names of fairchem 1.10's own preprocessing, or those a config maps."""
    data = records()
    for record in data:
        record.energy, record.forces = record.y, record.force
        del record.y, record.force
    path = write(tmp_path / "train", data)
    assert findings(path) == (0, {})
    train = {"src": "x", "key_mapping": {"forces": "push"}}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"dataset": {"train": train}}))
    code, found = findings(path, "--config", tmp_path / "c.yml", "--cutoff", 6)
    assert (code, list(found), found["no forces"]["count"]) == (1, ["no forces"], 4)


def test_linear_references_of_a_config(tmp_path):
    """With a config, lin_ref is subtracted as in training, so energies are not totals."""
    frames = slabs(3)
    data = [atoms_to_data(f, sid=0, fid=i) for i, f in enumerate(frames)]
    for record in data:
        record.oc22 = 1
    path = write(tmp_path / "train", data)
    assert list(findings(path)[1]) == ["no reference"]
    coeff = np.zeros(100)
    coeff[29], coeff[8] = -3.5, -7.25
    np.savez(tmp_path / "ref.npz", coeff=coeff)
    train = {"format": "dens_oc22_lmdb", "lin_ref": str(tmp_path / "ref.npz")}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"dataset": {"train": train}}))
    assert findings(path, "--config", tmp_path / "c.yml", "--cutoff", 6) == (0, {})


def test_converted_data_pass(tmp_path):
    ase.io.write(tmp_path / "a.traj", slabs(30))
    options = ["--references", "fit", "--split", "by-block", "--out", tmp_path / "out"]
    assert (
        run("convert", tmp_path / "a.traj", "--fractions", "train=.5,val=.5", *options).exit_code
        == 0
    )
    result = run("check", tmp_path / "out")
    assert result.exit_code == 0
    assert "warning" not in result.output
