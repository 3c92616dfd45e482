"""``dens data stats`` prints correct statistics that a config can include."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers.labelled import label, molecules, slabs
from helpers.structures import make_structure
from helpers.trainers import trainer_config
from torch_geometric.data import Batch

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.cli import data as command
from dens.data.soundness import open_or_periodic
from dens.data.survey.forces import Moments
from dens.fairchem1.data.datasets import ConfigReader
from dens.graphs.images import pairs_within
from dens.graphs.radius import count_neighbors


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [*map(str, arguments)], obj=ConfigReader)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three slabs with energies 1, 2, 6 eV, and forces (3, 4, 0) eV/Å on one free atom and large
    ones on a fixed atom."""
    frames = slabs(3)
    for frame, energy in zip(frames, (1.0, 2.0, 6.0), strict=True):
        forces = np.zeros((10, 3))
        forces[0], forces[5] = 100.0, (3, 4, 0)
        label(frame, energy, forces)
    ase.io.write(tmp_path / "a.traj", frames)
    run("convert", tmp_path / "a.traj", "--out", tmp_path / "data" / "train")
    return tmp_path / "data"


def test_numbers_by_hand(folder):
    out = folder.parent / "stats.yml"
    run("stats", folder, "--out", out)
    config = yaml.safe_load(out.read_text())
    normalizer = config["dataset"]["train"]["transforms"]["normalizer"]
    assert normalizer["energy"]["mean"] == pytest.approx(3.0)
    assert normalizer["energy"]["stdev"] == pytest.approx(np.sqrt(14 / 3))
    # 7 free atoms of 10: 25 over 21 components
    assert normalizer["forces"] == {"mean": 0.0, "stdev": pytest.approx(np.sqrt(25 / 21))}
    assert config["model"] == {"backbone": {"avg_num_nodes": 10.0}}
    like_energy = run("stats", folder / "train", "--forces-like-energy")
    assert f"stdev: {np.sqrt(14 / 3):.9f}"[:-1] in like_energy.split("forces:")[-1]


def test_a_config_includes_them(folder):
    """The cutoff comes from a config, which then includes the result."""
    from fairchem.core.common.utils import load_config

    config = trainer_config(str(folder / "train"))
    del config["dataset"]["train"]["transforms"]
    path, stats = folder.parent / "config.yml", folder.parent / "stats.yml"
    path.write_text(yaml.safe_dump({name: config[name] for name in ("dataset", "model")}))
    run("stats", folder, "--config", path, "--out", stats)
    path.write_text(f"includes: [stats.yml]\n{path.read_text()}")
    loaded, _, conflicts = load_config(str(path))
    assert not conflicts
    assert loaded["dataset"]["train"]["src"] == str(folder / "train")
    assert loaded["dataset"]["train"]["transforms"]["normalizer"]["energy"]["mean"] == 3.0
    backbone = loaded["model"]["backbone"]
    assert backbone["avg_num_nodes"] == 10.0
    assert 0 < backbone["avg_degree"] <= backbone["max_neighbors"] == 10
    assert backbone["num_layers"] == 1


@pytest.mark.parametrize("mean", [0.1, -2e4])
def test_moments_of_large_numbers_too(mean):
    rng = np.random.default_rng(0)
    values = mean + rng.normal(size=500)
    moments = Moments()
    for part in np.split(values, [3, 200]):
        moments.add(part)
    moments.add(np.zeros((0, 3)))
    result = moments.result()
    assert result["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert result["std"] == pytest.approx(values.std(), rel=1e-9)
    assert result["rms"] == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-9)
    assert result["mean_abs"] == pytest.approx(np.abs(values).mean(), rel=1e-9)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("cutoff", [3.0, 7.0])
def test_neighbors_are_those_of_fairchems_graph(cutoff, strict):
    from fairchem.core.common.utils import radius_graph_pbc

    rng = np.random.default_rng(0)
    structures = [make_structure(rng, size) for size in ((1, 1, 2), (2, 2, 2), (1, 3, 3))]
    structures[0].pos = structures[0].pos.round(decimals=1)  # equal distances
    batch = Batch.from_data_list(structures)
    fractional = torch.linalg.solve(batch.cell[batch.batch].transpose(1, 2), batch.pos[:, :, None])
    batch.pos = (batch.cell[batch.batch].transpose(1, 2) @ (fractional % 1)).squeeze(2)
    batch.pbc = torch.ones(3, 3, dtype=torch.bool)
    edges = radius_graph_pbc(batch, cutoff, 12, enforce_max_neighbors_strictly=strict)[0]
    expected = torch.bincount(edges[1], minlength=len(batch.pos))
    counts = [
        count_neighbors(*open_or_periodic(data), cutoff, 12, strict=strict)
        for data in batch.to_data_list()
    ]
    assert np.concatenate(counts).tolist() == expected.tolist()
    assert expected.max() >= 12


def test_pairs_of_a_cell_thinner_than_the_cutoff():
    """A simple cubic crystal of one atom: 6, 12 and 8 neighbours at 1, sqrt(2) and sqrt(3)."""
    for limit, expected in ((1.1, 6), (1.5, 18), (1.8, 26), (2.1, 32)):
        _, squared = pairs_within(np.array([[0.3, 0.3, 0.3]]), np.eye(3), limit)
        assert len(squared) == expected


def test_open_molecules_have_no_images():
    (frame,) = molecules(1)
    counts = count_neighbors(frame.positions, None, 20.0)
    assert counts.tolist() == [8] * 9


def test_refusals(folder, tmp_path):
    def refusal(*arguments: object) -> str:
        result = CliRunner().invoke(command, ["stats", *map(str, arguments)], obj=ConfigReader)
        assert result.exit_code != 0
        return result.output.removeprefix("Error: ").rstrip()

    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'} does not exist")
    assert "has no *.lmdb" in refusal(tmp_path)
    assert refusal(folder, "--max-neighbors", 3) == "--max-neighbors needs --cutoff"
    (tmp_path / "c.yml").write_text("model: {}\ndataset: {train: {}}")
    assert "no model.backbone.max_radius" in refusal(folder, "--config", tmp_path / "c.yml")
    (tmp_path / "s.yml").touch()
    assert refusal(folder, "--out", tmp_path / "s.yml") == f"{tmp_path / 's.yml'} already exists"


def test_oc22_totals_through_their_own_loader(tmp_path, real_data):
    """With lin_ref, the energies are those minus the references."""
    import pickle

    from dens.data.store.lmdb import LmdbWriter

    records = pickle.loads((real_data / "oc22" / "oc22_s2ef_16.pkl").read_bytes())
    with LmdbWriter(tmp_path / "train") as writer:
        for record in records:
            writer.write(record)
    coeff = real_data / "linref" / "oc22_linfit_coeffs.npz"
    train = {"format": "dens_oc22_lmdb", "lin_ref": str(coeff)}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"dataset": {"train": train}}))
    output = run("stats", tmp_path, "--config", tmp_path / "c.yml", "--cutoff", 6)
    references = np.load(coeff)["coeff"]
    left = [float(r.y) - references[r.atomic_numbers.long().numpy()].sum() for r in records]
    config = yaml.safe_load(output[output.index("dataset:") :])
    energy = config["dataset"]["train"]["transforms"]["normalizer"]["energy"]
    assert energy["mean"] == pytest.approx(np.mean(left), abs=1e-4)
    assert energy["stdev"] == pytest.approx(np.std(left), abs=1e-4)


def test_what_would_divide_by_zero_is_left_out(tmp_path):
    frames = slabs(3)
    for frame in frames:
        label(frame, -1.0, np.zeros((10, 3)))
    ase.io.write(tmp_path / "a.traj", frames)
    run("convert", tmp_path / "a.traj", "--out", tmp_path / "a")
    for options in ([], ["--forces-like-energy"], ["--cutoff", "0.1", "--measured", "0"]):
        result = CliRunner().invoke(
            command, ["stats", str(tmp_path / "a"), *options], obj=ConfigReader
        )
        assert "all energies are equal: no spread, so the YAML has no normalizer" in result.stderr
        assert "the YAML has no normalizer of the forces" in result.stderr
        assert ("the YAML has no avg_degree" in result.stderr) == ("--cutoff" in options)
        config = yaml.safe_load(result.stdout)
        assert config == {"model": {"backbone": {"avg_num_nodes": 10.0}}}


def test_measured_0_counts_in_all(folder):
    counted = [run("stats", folder, "--cutoff", 4, "--measured", n) for n in (0, 1000)]
    assert counted[0] == counted[1]
    assert "avg_degree: null" not in counted[0]
