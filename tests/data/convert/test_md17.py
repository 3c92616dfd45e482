"""Test ``dens data md17``: file layouts, splits, values, download and error messages."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from helpers.program import refused_data, run_data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.md17 import convert_md17
from dens.data.sources import md17 as md17_sources
from dens.data.sources.md17 import MOLECULES, find_molecule

KCAL = units.kcal / units.mol
NUMBERS = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
SMALL = {"n_train": 20, "n_val": 5}


def frames(n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Make frames of ethanol in the units of MD17, kcal/mol and Å."""
    rng = np.random.default_rng(seed)
    return {
        "R": 2 * rng.normal(size=(n, 9, 3)),
        "E": -97_000 + 5 * rng.normal(size=(n, 1)),
        "F": 20 * rng.normal(size=(n, 9, 3)),
        "z": NUMBERS.astype(np.uint8),
    }


def revised(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {"R": "coords", "E": "energies", "F": "forces", "z": "nuclear_charges"}
    return {new: values[old].ravel() if old == "E" else values[old] for old, new in names.items()}


def write_npz(path: Path, **changes) -> Path:
    np.savez(path, **{**frames(), **changes})
    return path


def write_xyz(path: Path, values: dict[str, np.ndarray], factor: float, symbols="C2OH6") -> Path:
    images = []
    for pos, energy, forces in zip(values["R"], values["E"].ravel(), values["F"], strict=True):
        atoms = Atoms(symbols, pos)
        labels = {"energy": energy * factor, "forces": forces * factor}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    write(path, images, format="extxyz")
    return path


def read(folder: Path) -> list:
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset

    dataset = LmdbDataset({"src": str(folder)})
    return [dataset[i] for i in range(len(dataset))]


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def check_against_source(out: Path, values: dict[str, np.ndarray], tolerance: float = 0) -> None:
    """Compare each record with the frame that its fid names, in float32 of the shifted value."""
    info = json.loads((out / "dens_info.json").read_text())
    energy = values["E"].ravel() * KCAL
    train = np.loadtxt(out / "index_train.txt", dtype=int)
    assert info["energy_mean"] == pytest.approx(energy[train].mean(), abs=1e-8 + tolerance)
    assert info["energy_stdev"] == pytest.approx(energy[train].std(ddof=1), rel=1e-6)
    for split in info["splits"]:
        index = np.loadtxt(out / f"index_{split}.txt", dtype=int)
        for data, number in zip(read(out / split), index, strict=True):
            assert data.fid == number
            expected = energy[number] - info["energy_mean"]
            assert float(np.float32(data.y)) == pytest.approx(expected, abs=1e-6 + tolerance)
            wanted = {"pos": values["R"][number], "force": values["F"][number] * KCAL}
            for name, value in wanted.items():
                exact = torch.tensor(value, dtype=torch.float32)
                torch.testing.assert_close(data[name], exact, rtol=0, atol=2e-6 + tolerance)
            assert data.atomic_numbers.tolist() == NUMBERS.tolist()
            assert data.natoms == 9
            assert not data.fixed.any()
            assert not data.pbc.any()


def test_all_molecules_by_name_and_alias():
    # atoms and frames: the site's table, also in PyTorch Geometric's documentation
    expected = {
        "aspirin": ("aspirin", 21, 211_762),
        "Benzene": ("benzene", 12, 627_983),
        "benzene2017": ("benzene", 12, 627_983),
        "benzene_old": ("benzene", 12, 627_983),
        "ethanol": ("ethanol", 9, 555_092),
        "malonaldehyde": ("malonaldehyde", 9, 993_237),
        "naphthalene": ("naphthalene", 18, 326_250),
        "salicylic": ("salicylic", 16, 320_231),
        "salicylic acid": ("salicylic", 16, 320_231),
        "toluene": ("toluene", 15, 442_790),
        "uracil": ("uracil", 12, 133_770),
    }
    for name, facts in expected.items():
        molecule = find_molecule(name)
        atoms = sum(molecule.composition.values())
        assert (molecule.name, atoms, molecule.frames) == facts
    assert len(MOLECULES) == 8
    with pytest.raises(ValueError, match=r"must be one of aspirin, benzene = .*, got 'azobenzene'"):
        find_molecule("azobenzene")


@pytest.mark.parametrize("layout", ["original", "revised", "extxyz", "sgdml in eV"])
def test_layouts_give_the_same_frames(tmp_path, layout):
    values, options = frames(), {}
    source = tmp_path / "ethanol.npz"
    if layout == "original":
        np.savez(source, **values, name=np.array("ethanol", dtype=object))
    elif layout == "revised":
        np.savez(source, **revised(values), old_indices=np.arange(40))
    elif layout == "sgdml in eV":
        in_ev = {"E": values["E"] * KCAL, "F": values["F"] * KCAL}
        np.savez(source, **{**values, **in_ev}, e_unit=np.bytes_("eV"), r_unit=np.bytes_("Ang"))
    else:
        source = write_xyz(tmp_path / "ethanol.xyz", values, factor=1.0)
        options = {"units": "kcal/mol"}
    summary = convert_md17("ethanol", source, tmp_path / "out", **SMALL, **options)
    assert summary.counts == {"train": 20, "val": 5, "test": 15}
    # ASE writes positions and forces with eight digits after the point
    check_against_source(tmp_path / "out", values, 1e-7 if layout == "extxyz" else 0)


def test_same_seed_same_bytes(tmp_path):
    source = write_npz(tmp_path / "ethanol.npz")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        convert_md17("ethanol", source, tmp_path / name, seed=seed, **SMALL)
    a, b, c = (bytes_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a["index_train.txt"] != c["index_train.txt"]
    index = [np.loadtxt(tmp_path / "a" / f"index_{s}.txt", dtype=int) for s in ("train", "val")]
    assert not set(index[0]) & set(index[1])


def test_sets_with_a_train_and_a_test_file(tmp_path):
    folder = tmp_path / "ethanol_ccsd_t"
    folder.mkdir()
    train, test = frames(30, 1), frames(12, 2)
    np.savez(folder / "ethanol_ccsd_t-train.npz", **train)
    np.savez(folder / "ethanol_ccsd_t-test.npz", **test)
    np.savez(folder / "toluene_ccsd_t-test.npz", **test)  # of another molecule
    summary = convert_md17("ethanol", folder, tmp_path / "out", **SMALL)
    assert summary.counts == {"train": 20, "val": 5, "test": 12}
    records = read(tmp_path / "out" / "test")
    for number, data in enumerate(records):
        expected = test["E"][number, 0] * KCAL - summary.mean
        assert data.y == pytest.approx(expected, abs=1e-8)


def test_index_files(tmp_path):
    folder = tmp_path / "rmd17" / "npz_data"
    folder.mkdir(parents=True)
    np.savez(folder / "rmd17_ethanol.npz", **revised(frames()))
    train, test = tmp_path / "index_train_01.csv", tmp_path / "index_test_01.csv"
    train.write_text("".join(f"{i}\n" for i in range(0, 30, 2)))
    test.write_text("1\n3\n39\n")
    files = {"train": train, "test": test}
    out = tmp_path / "out"
    summary = convert_md17("ethanol", tmp_path / "rmd17", out, n_val=5, index_files=files)
    assert summary.counts == {"train": 10, "val": 5, "test": 3}
    index = {s: np.loadtxt(out / f"index_{s}.txt", dtype=int).tolist() for s in summary.counts}
    assert sorted(index["train"] + index["val"]) == list(range(0, 30, 2))
    assert index["test"] == [1, 3, 39]
    check_against_source(out, frames())
    test.write_text("1\n4\n")
    with pytest.raises(ValueError, match="frame 4 is in both splits, train and test"):
        convert_md17("ethanol", tmp_path / "rmd17", tmp_path / "x", n_val=5, index_files=files)


def test_normalizers_for_a_config(tmp_path):
    """Check both forms of the normaliser, as fairchem reads them; the training mean is zero."""
    from fairchem.core.common.utils import load_config
    from fairchem.core.modules.normalization.normalizer import create_normalizer

    summary = convert_md17("ethanol", write_npz(tmp_path / "e.npz"), tmp_path / "out", **SMALL)
    energies = np.array([data.y for data in read(tmp_path / "out" / "train")])
    assert energies.mean() == pytest.approx(0, abs=1e-9)
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump({"includes": ["out/normalizer.yml"]}))
    included = load_config(str(config))[0]["dataset"]["train"]["transforms"]["normalizer"]
    for name in ("energy", "forces"):
        assert included[name] == {"mean": 0.0, "stdev": summary.stdev}
        loaded = create_normalizer(file=tmp_path / "out" / f"normalizer_{name}.npz")
        assert (loaded.mean.item(), loaded.rmsd.item()) == (0.0, np.float32(energies.std(ddof=1)))
        assert loaded.norm(torch.ones(2)).dtype == torch.float32


def broken(values: np.ndarray, index, value) -> np.ndarray:
    values = values.copy()
    values[index] = value
    return values


def bad_npz(**changes):
    return lambda folder: write_npz(folder / "bad.npz", **changes)


def bad_bytes(size: int | None, content: bytes = b""):
    def make(folder: Path) -> Path:
        path = write_npz(folder / "bad.npz")
        path.write_bytes(content if size is None else path.read_bytes()[:size])
        return path

    return make


def without(*keys: str):
    def make(folder: Path) -> Path:
        np.savez(folder / "bad.npz", **{k: v for k, v in frames().items() if k not in keys})
        return folder / "bad.npz"

    return make


def xyz_without_forces(folder: Path) -> Path:
    atoms = Atoms("C2OH6", frames()["R"][0])
    atoms.calc = SinglePointCalculator(atoms, energy=-4200.0)
    write(folder / "bad.xyz", atoms, format="extxyz")
    return folder / "bad.xyz"


def mixed_xyz(folder: Path) -> Path:
    first = write_xyz(folder / "bad.xyz", frames(2), KCAL)
    second = write_xyz(folder / "other.xyz", frames(2), KCAL, symbols="C2O2H5")
    first.write_text(first.read_text() + second.read_text())
    return first


def cut_xyz(folder: Path) -> Path:
    path = write_xyz(folder / "bad.xyz", frames(3), KCAL)
    path.write_text(path.read_text()[:-900])
    return path


def two_sets(folder: Path) -> Path:
    for name in ("md17_ethanol.npz", "rmd17_ethanol.npz"):
        write_npz(folder / name)
    return folder


EV = ("--units", "eV-A")
BAD = {
    "no file": (lambda folder: folder / "nothing.npz", (), "expected a file or folder with MD17"),
    "empty folder": (lambda folder: folder, (), "expected one .npz file of ethanol, .* got none"),
    "two sets": (two_sets, (), "got md17_ethanol.npz, rmd17_ethanol.npz: name the file"),
    "cut npz": (bad_bytes(9000), (), "cannot be read, it may be truncated"),
    "no npz": (bad_bytes(None, b"<html>404</html>"), (), "cannot be read, it may be truncated"),
    "empty npz": (bad_bytes(0), (), "cannot be read, it may be truncated"),
    "cut xyz": (cut_xyz, EV, r"bad.xyz: frame 2 is cut off after \d+ lines"),
    "no forces": (without("F"), (), "got R, E, z .no F."),
    "no keys": (without("F", "E", "R"), (), r"got z .no coords, energies, forces, nuclear_charges"),
    "xyz without forces": (xyz_without_forces, EV, "frame 0: .* forces, got only energy"),
    "xyz without units": (
        lambda folder: write_xyz(folder / "bad.xyz", frames(), KCAL),
        (),
        "does not name its units: give --units",
    ),
    "unknown units": (bad_npz(), ("--units", "kJ"), "units must be one of eV-A, .*, got 'kJ'"),
    "wrong units": (bad_npz(), EV, "fits the molecule in kcal/mol, not in eV-A"),
    "units against the file": (
        bad_npz(e_unit=np.bytes_("kcal/mol")),
        EV,
        "its own e_unit says kcal/mol, got --units eV-A",
    ),
    "positions in Bohr": (bad_npz(r_unit=np.bytes_("Bohr")), (), "in Å, got r_unit 'Bohr'"),
    "NaN": (bad_npz(F=broken(frames()["F"], (7, 2, 1), np.nan)), (), "forces .* NaN .* frame 7"),
    "infinity": (bad_npz(E=broken(frames()["E"], (3, 0), np.inf)), (), "energies .* in frame 3"),
    "another molecule": (bad_npz(z=NUMBERS[[0, 1, 2, 3, 4, 5, 6, 7, 0]]), (), "got C3H5O"),
    "unknown element": (bad_npz(z=broken(NUMBERS, 0, 0)), (), "expected atomic numbers, got 0"),
    "several molecules": (
        bad_npz(z=np.stack([NUMBERS, NUMBERS[::-1]])),
        (),
        "the same atoms in every frame, got several molecules",
    ),
    "mixed xyz": (mixed_xyz, EV, "got C2H6O in frame 0 and C2H5O2 in frame 2"),
    "shapes": (bad_npz(R=frames(39)["R"]), (), r"got \(39, 9, 3\) and \(40, 9, 3\)"),
    "too many": (bad_npz(), ("--train", "36"), "no more than its 40, got --train 36 --val 5"),
    "none left": (bad_npz(), ("--train", "35"), "no frame is left for the test split"),
    "same energies": (bad_npz(E=np.full(40, -97e3)), (), "expected energies that differ"),
    "checksum": (bad_npz(), ("--sha256", "00ff"), "expected SHA-256 00ff, got [0-9a-f]{64}"),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_gives_one_line_and_no_output(tmp_path, make, options, message):
    folder = tmp_path / "source"
    folder.mkdir()
    source, out = make(folder), tmp_path / "out"
    arguments = ["md17", "ethanol", "--source", source, "--out", out, "--train", 20, "--val", 5]
    line = refused_data(*arguments, *options)
    assert re.search(message, line), line
    if "units" not in message:
        assert str(folder) in line
    assert not list(tmp_path.glob("*out*"))


def test_download(tmp_path, monkeypatch):
    """Check which downloads are kept and which are refused; local files replace the site's."""
    site = tmp_path / "site"
    site.mkdir()
    source = write_npz(site / "md17_ethanol.npz")
    monkeypatch.setattr(md17_sources, "URL", f"{site.as_uri()}/{{name}}.npz")
    out = tmp_path / "data" / "ethanol"
    arguments = ["md17", "ethanol", "--download", "--out", str(out), "--train", "20", "--val", "5"]
    assert "md17_ethanol.npz: expected 555092 frames, got 40" in refused_data(*arguments)
    assert not list(out.parent.iterdir())

    small = (md17_sources.Molecule("ethanol", "C2H6O", 40, "md17_ethanol"),)
    monkeypatch.setattr(md17_sources, "MOLECULES", small)
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()
    run_data(*arguments, "--sha256", checksum)
    info = json.loads((out / "dens_info.json").read_text())
    assert info["url"] == f"{site.as_uri()}/md17_ethanol.npz"
    assert info["sources"][0]["sha256"] == checksum
    check_against_source(out, frames())

    source.write_bytes(b"<html>not found</html>")
    (out.parent / "md17_ethanol.npz").unlink()
    assert f"{site.as_uri()}/md17_ethanol.npz: cannot be read" in refused_data(*arguments)
    source.unlink()
    assert f"{site.as_uri()}/md17_ethanol.npz: cannot be downloaded" in refused_data(*arguments)


REAL = {
    "rmd17_aspirin_1200.xyz": ("aspirin", "eV-A", 1.0),
    "md17_ethanol_kcal_2000.xyz": ("ethanol", "kcal/mol", KCAL),
    "sgdml_ethanol_ccsd_t_1000.npz": ("ethanol", None, KCAL),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_back(tmp_path, real_data, name):
    """Compare energies and forces of real files, within float32 of the shifted value."""
    source = real_data / "md17" / name
    molecule, unit, factor = REAL[name]
    convert_md17(molecule, source, tmp_path / "out", units=unit, n_train=850, n_val=50, n_test=100)
    energy, forces, pos = real_arrays(source)
    info = json.loads((tmp_path / "out" / "dens_info.json").read_text())
    for split, count in (("train", 850), ("val", 50), ("test", 100)):
        records = read(tmp_path / "out" / split)
        assert len(records) == count
        for data in records:
            expected = np.float32(energy[data.fid] * factor - info["energy_mean"])
            assert abs(np.float32(data.y) - expected) <= np.spacing(abs(expected))
            exact = torch.tensor(forces[data.fid] * factor, dtype=torch.float32)
            assert torch.equal(data.force, exact)
            assert torch.equal(data.pos, torch.tensor(pos[data.fid], dtype=torch.float32))


def real_arrays(source: Path):
    """Read energies, forces and positions without the code under test."""
    if source.suffix == ".npz":
        file = np.load(source)
        return file["E"].ravel(), file["F"], file["R"]
    lines = source.read_text().splitlines()
    n = int(lines[0])
    table = [lines[i : i + n + 2] for i in range(0, len(lines), n + 2)]
    energy = [float(frame[1].split("energy=")[1].split()[0]) for frame in table]
    numbers = np.array([[line.split()[1:7] for line in frame[2:]] for frame in table], dtype=float)
    return np.array(energy), numbers[:, :, 3:], numbers[:, :, :3]
