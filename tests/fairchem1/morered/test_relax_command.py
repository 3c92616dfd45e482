"""``dens relax``: kinds of models, bad structures, contradicting options, what is written."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import fcc111, molecule
from ase.constraints import FixAtoms
from helpers.structures import make_structure
from helpers.trainers import morered_config, trainer_config, write_dataset

import dens
from dens import cli
from dens.data.store.records import data_to_atoms
from dens.fairchem1 import DeNSTrainer, MoreRedTrainer
from dens.fairchem1.morered.denoisers import load_denoiser

HEADS = {
    "jt": ({"m": {"module": "dens.MoreRedHead"}}, ("noise", "time")),
    "noise": ({"m": {"module": "dens.MoreRedHead", "time": "given"}}, ("noise",)),
    "time": ({"m": {"module": "dens.TimeHead"}}, ("time",)),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Checkpoints of untrained models, by kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    src = write_dataset(folder / "data")
    saved = {}
    for kind in (*HEADS, "dens"):
        shared = {"is_debug": False, "run_dir": str(folder), "timestamp_id": kind}
        shared["logger"] = "tensorboard"
        if kind == "dens":
            trainer = DeNSTrainer(**trainer_config(src, **shared))
        else:
            heads, losses = HEADS[kind]
            trainer = MoreRedTrainer(**morered_config(src, heads=heads, losses=losses, **shared))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.model.parameters():  # some start at zero
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        trainer.train(disable_eval_tqdm=True)
        saved[kind] = str(folder / "checkpoints" / kind / "checkpoint.pt")
    return saved


@pytest.fixture
def slab():
    return data_to_atoms(make_structure(np.random.default_rng(5), sid=0))


def relax(*argv) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["relax", *map(str, argv)])
    return stop.value.code or 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jt", ()),
        ("jt", ("--sampler", "jt", "--max-calls", "4")),
        ("jt", ("--sampler", "itp", "--max-calls", "4")),
        ("noise", ("--sampler", "as", "--max-calls", "4")),
        ("noise", ("--sampler", "itp", "--max-calls", "4")),
        ("dens", ("--max-calls", "4")),
        ("dens", ("--max-calls", "3", "--polish", "bfgs", "--fmax", "100")),
    ],
)
def test_kinds_of_models_relax(tmp_path, capsys, checkpoints, slab, kind, options):
    ase.io.write(tmp_path / "a.traj", slab)
    more = ["--time-checkpoint", checkpoints["time"]] if kind == "noise" else []
    argv = [tmp_path / "a.traj", "--checkpoint", checkpoints[kind], "--out", tmp_path / "b.traj"]
    status = relax(*argv, *more, *options)
    relaxed = ase.io.read(tmp_path / "b.traj")
    assert status == (0 if relaxed.info["relax_converged"] else 1)
    fixed = slab.constraints[0].index
    assert np.array_equal(relaxed.positions[fixed], slab.positions[fixed])
    assert not np.array_equal(relaxed.positions, slab.positions)
    row = capsys.readouterr().out.splitlines()[2]
    assert row.split()[:2] == [str(tmp_path / "a.traj"), str(len(slab))]


def test_bad_structures_are_left_out_with_a_line(tmp_path, capsys, checkpoints, slab):
    """Each with the reason; the others are relaxed and written in their order."""
    bad = {}
    for name in ("element", "partly", "held", "coincident"):
        bad[name] = slab.copy()
    bad["element"].numbers[0] = 79
    bad["partly"].pbc, bad["partly"].cell = [True, False, False], np.diag([6.0, 3.0, 3.0])
    bad["held"].set_constraint(FixAtoms(range(len(slab))))
    bad["coincident"].positions[1] = bad["coincident"].positions[2]
    for name, atoms in bad.items():
        ase.io.write(tmp_path / f"{name}.traj", atoms)
    (tmp_path / "empty.xyz").touch()
    ase.io.write(tmp_path / "good.traj", [slab, slab])
    files = [tmp_path / f"{name}.traj" for name in ("good", *bad)]
    argv = [*files, tmp_path / "empty.xyz", tmp_path / "absent.xyz", tmp_path / "good.traj"]
    argv += ["--checkpoint", checkpoints["jt"], "--out", tmp_path / "out.traj"]
    assert relax(*argv) == 1
    errors = capsys.readouterr().err.splitlines()
    for part in (
        "(Au) must be of an element in the training data",
        "expected a free atom",
        "apart or more",
        "empty.xyz cannot be read",
        "absent.xyz does not exist",
    ):
        assert sum(part in line for line in errors) == 1, (part, errors)
    assert any("partly.traj" in line for line in errors)
    relaxed = ase.io.read(tmp_path / "out.traj", ":")
    assert len(relaxed) == 4
    for other in relaxed[1:]:  # whatever the batch and the place in it
        np.testing.assert_allclose(other.positions, relaxed[0].positions, atol=1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fmax", "0.1"], "--fmax 0.1 is for --polish, which is missing"),
        (["--polish", "bfgs"], "--polish needs forces"),
        (["--sampler", "itp", "--stop-level", "3"], "stop_level = 3 would be ignored"),
        (["--time-checkpoint", "TIME"], "predicts the level itself"),
        (["--out", "relaxed.nonsense"], "is of no format that ASE writes"),
        (["--out", "relaxed.cif.gz", "--seed", "-1"], "--seed"),
        (["a.traj", "--out", "POSCAR"], "--out POSCAR takes one structure, got 2"),
    ],
)
def test_options_that_contradict(tmp_path, monkeypatch, capsys, checkpoints, slab, argv, message):
    monkeypatch.chdir(tmp_path)
    ase.io.write(tmp_path / "a.traj", slab)
    argv = [checkpoints["time"] if word == "TIME" else word for word in argv]
    common = ["--checkpoint", checkpoints["jt"], "--out", tmp_path / "b.traj"]
    assert relax(tmp_path / "a.traj", *common, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    assert message in line


def test_checkpoints_of_other_kinds_are_refused(checkpoints):
    with pytest.raises(ValueError, match="a time network: relaxation by denoising needs"):
        load_denoiser(checkpoints["time"])
    with pytest.raises(ValueError, match="is told the level: it needs a time checkpoint"):
        load_denoiser(checkpoints["noise"])
    with pytest.raises(ValueError, match=r"no noise network of MoreRed, so .* would be ignored"):
        load_denoiser(checkpoints["dens"], time_path=checkpoints["time"])
    with pytest.raises(ValueError, match="predicts neither energies nor forces"):
        dens.load_calculator(checkpoints["jt"])


def test_trajectories_begin_and_end_where_the_structure_did(tmp_path, checkpoints, slab):
    ase.io.write(tmp_path / "a.traj", slab)
    argv = [tmp_path / "a.traj", "--checkpoint", checkpoints["jt"], "--out", tmp_path / "b.traj"]
    relax(*argv, "--trajectories", tmp_path / "ways")
    (way,) = (tmp_path / "ways").glob("*.traj")
    frames = ase.io.read(way, ":")
    relaxed = ase.io.read(tmp_path / "b.traj")
    assert len(frames) == relaxed.info["relax_calls"] + 1
    assert np.array_equal(frames[0].positions, slab.positions)
    assert np.array_equal(frames[-1].positions, relaxed.positions)


def test_an_optimizer_of_a_checkpoint(checkpoints, slab):
    relaxer = dens.load_relaxer(checkpoints["jt"], max_calls=3)
    optimizer = relaxer(slab, logfile=None)
    optimizer.run()
    assert 1 <= optimizer.nsteps <= 3
    with pytest.raises(ValueError, match="must be of an element"):
        relaxer(fcc111("Au", (2, 2, 2), vacuum=5.0))
    with pytest.raises(ValueError, match="did you mean max_calls"):
        dens.load_relaxer(checkpoints["jt"], max_call=3)


def test_an_open_molecule_with_a_model_of_slabs(checkpoints):
    """It has no cell, and gets a box for the model; nothing depends on where it stands."""
    relaxer = dens.load_relaxer(checkpoints["jt"], max_calls=3)
    atoms = molecule("O2")
    moved = atoms.copy()
    moved.positions += 20.0
    first, second = (one.atoms for one in relaxer.relax_many([atoms, moved]))
    np.testing.assert_allclose(second.positions - 20.0, first.positions, atol=1e-4)
