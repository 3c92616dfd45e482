"""Test ``--mode run-relaxations`` with a MoreRed trainer: results, files, ranks and errors."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too
import copy
import logging
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from fairchem.core.modules.evaluator import average_distance_within_threshold
from helpers.ranks import on_ranks
from helpers.structures import make_structure
from helpers.trainers import BACKBONE, OPTIM

from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import data_to_atoms
from dens.fairchem1.config.settle import settle
from dens.fairchem1.morered.denoisers import MoreRedDenoiser, Network
from dens.fairchem1.morered.train import MoreRedTrainer
from dens.relax.atoms.relaxer import Relaxer
from dens.relax.config import RelaxSettings
from dens.settings import ConfigError

SIZES = [(2, 2, 2), (1, 2, 3), (2, 2, 3), (1, 2, 2), (2, 2, 2)]
RELAX_OPT = {"sampler": "jt", "max_calls": 3, "stop_level": 0}
CONFIG = {
    "task": {"relax_opt": RELAX_OPT},
    "model": {
        "name": "hydra",
        "pass_through_head_outputs": True,
        "otf_graph": True,
        # equivariant to rounding, so that it does not depend on the edges' random frames
        "backbone": {
            **BACKBONE,
            "model": "dens.EquiformerV2Backbone",
            "force_encoding": False,
            "use_gate_act": True,
            "use_grid_mlp": False,
        },
        "heads": {"morered": {"module": "dens.MoreRedHead"}},
    },
    "outputs": {"noise": {"level": "atom"}, "time": {"level": "atom"}},
    "loss_functions": [
        {"noise": {"fn": "mse", "coefficient": 0.9}},
        {"time": {"fn": "mse", "coefficient": 10}},
    ],
    "evaluation_metrics": {"metrics": {"noise": ["mse"]}, "primary_metric": "noise_mse"},
    "optimizer": {**OPTIM, "eval_batch_size": 2, "morered": {}},
    "identifier": "",
    "local_rank": 0,
    "is_debug": True,
    "cpu": True,
    "seed": 0,
}


def records():
    rng = np.random.default_rng(0)
    found = [make_structure(rng, size, sid=f"system/{i}") for i, size in enumerate(SIZES)]
    for data in found:
        del data.energy, data.forces
        data.pos_relaxed = data.pos + 0.1 * torch.randn(
            data.pos.shape, generator=torch.Generator().manual_seed(1)
        )
    return found


def write(folder: Path, **changes) -> str:
    """Write the records; ``changes`` are fields of the last one."""
    with LmdbWriter(folder) as writer:
        for data in records()[:-1]:
            writer.write(data)
        last = records()[-1]
        for name, value in changes.items():
            last[name] = value
        writer.write(last)
    return str(folder)


def make_trainer(src: str, **task) -> MoreRedTrainer:
    config = copy.deepcopy(CONFIG)
    config["task"].update(task)
    data = {"train": {"src": src, "format": "lmdb"}, "val": {"src": src}, "relax": {"src": src}}
    trainer = MoreRedTrainer(dataset=data, **config)
    # a fresh network's level is arbitrary: here every structure has a small one
    with torch.no_grad():
        for own in (trainer._unwrapped_model.parameters(), trainer.ema.shadow_params):
            named = zip(trainer._unwrapped_model.named_parameters(), own, strict=True)
            for (name, _), weight in named:
                if name.endswith(("time.4.weight", "time.4.bias")):
                    weight.fill_(0.1 * name.endswith("bias"))
    return trainer


def results() -> dict[str, np.ndarray]:
    (path,) = Path("results").glob("*/relaxed_positions.npz")
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def src(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "data")


def test_files_and_metrics(src, caplog):
    caplog.set_level(logging.INFO)
    trainer = make_trainer(src, relax_opt={**RELAX_OPT, "traj_dir": "ways"})
    trainer.run_relaxations()
    found = results()
    assert found["ids"].tolist() == [f"system/{i}" for i in range(len(SIZES))]
    assert found["calls"].tolist() == [3] * len(SIZES)
    assert not found["converged"].any()
    network = Network(trainer._unwrapped_model)
    denoiser = MoreRedDenoiser(network, trainer.objective.config.levels)
    with trainer.evaluating():
        relaxer = Relaxer(denoiser, RelaxSettings(**RELAX_OPT))
        expected = relaxer.relax_many([data_to_atoms(data) for data in records()])
    parts = np.split(found["pos"], found["chunk_idx"])
    for i, (pos, (atoms, _), data) in enumerate(zip(parts, expected, records(), strict=True)):
        np.testing.assert_allclose(pos, atoms.positions, atol=1e-5)
        fixed = data.fixed == 1
        assert np.array_equal(pos[fixed], data.pos[fixed])
        assert not np.allclose(pos[~fixed], data.pos[~fixed], atol=1e-3)
        way = ase.io.read(f"ways/system/{i}.traj", ":")
        assert len(way) == 4
        np.testing.assert_array_equal(way[0].positions, data.pos)
        np.testing.assert_array_equal(way[-1].positions, pos)
    for which in ([data.pos.double() for data in records()], [torch.tensor(p) for p in parts]):
        assert f"{threshold_metric(which):.3f}" in caplog.text
    trainer._unwrapped_model.forward = None  # asked again, it would raise
    trainer.run_relaxations()
    assert "5 structures were relaxed before, and are read from ways" in caplog.text
    again = results()
    assert all(np.array_equal(found[name], again[name]) for name in found)


def threshold_metric(positions) -> float:
    """Compute fairchem's measure of success."""
    free = [data.fixed == 0 for data in records()]
    target = {
        "positions": torch.cat([d.pos_relaxed[f] for d, f in zip(records(), free, strict=True)]),
        "cell": torch.cat([data.cell for data in records()]),
        "pbc": torch.ones(3, dtype=torch.bool),
        "natoms": torch.tensor([int(f.sum()) for f in free]),
    }
    prediction = {
        "positions": torch.cat([p[f] for p, f in zip(positions, free, strict=True)]),
        "natoms": target["natoms"],
    }
    return average_distance_within_threshold(prediction, target)["metric"]


def test_weights_are_the_averaged_ones_and_batches_are_limited(src):
    trainer = make_trainer(src, num_relaxation_batches=2, save_full_traj=False)
    for weight in trainer.ema.shadow_params:
        weight.zero_()
    trainer.run_relaxations()
    found = results()
    assert found["ids"].tolist() == [f"system/{i}" for i in range(4)]
    np.testing.assert_array_equal(found["pos"], torch.cat([d.pos for d in records()[:4]]))


def relax_on_rank(rank, src, folder) -> dict | None:
    import os

    os.chdir(folder)
    make_trainer(src).run_relaxations()
    return results() if rank == 0 else None


def test_two_ranks_write_what_one_does(src, tmp_path, processes, free_port):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (one,) = on_ranks(processes, 1, free_port, relax_on_rank, src, str(tmp_path / "one"))
    two, _ = on_ranks(processes, 2, free_port, relax_on_rank, src, str(tmp_path / "two"))
    np.testing.assert_allclose(two.pop("pos"), one.pop("pos"), atol=1e-5)
    for name, values in one.items():
        np.testing.assert_array_equal(two[name], values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": torch.ones(9)}, "structure system/4 of dataset.relax: expected a free atom"),
        ({"sid": "system/3"}, "two structures have the trajectory system/3"),
        ({"sid": "../4"}, "the sid '../4' is no file name"),
    ],
)
def test_refused_structures(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(
        write(tmp_path / "data", **changes), relax_opt={**RELAX_OPT, "traj_dir": "ways"}
    )
    trainer._unwrapped_model.forward = None  # no structure is relaxed before
    with pytest.raises(ConfigError, match=message):
        trainer.run_relaxations()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"relax_opt": {"max_call": 3}}, "did you mean max_calls?"),
        ({"relax_opt": {"memory": 50}}, "memory"),
        ({"relax_opt": {"sampler": "jt", "damping": 0.1}}, "would be ignored"),
        ({"relax_opt": {"stop_level": 1000}}, r"stop_level must be < 1000.*relax_opt.stop_level"),
        ({"relaxation_fmax": 0.02}, "relaxation_fmax would be ignored.*task.relaxation_fmax"),
        ({"relax_cell": True}, "relax_cell would be ignored: .* keeps the cell"),
    ],
)
def test_refused_settings(task, message):
    config = {**CONFIG, "trainer": "dens.MoreRedTrainer", "task": task}
    config["optim"] = config.pop("optimizer")
    settings = ("identifier", "local_rank", "is_debug", "cpu", "seed")
    config = {name: value for name, value in config.items() if name not in settings}
    with pytest.raises(ConfigError, match=message) as error:
        settle(config)
    assert len(str(error.value).splitlines()) == 1
