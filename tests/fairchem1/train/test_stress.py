"""Test training with stress in two parts: loss, ranks, resuming, export, relaxation of a cell."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem, in the spawned ranks too

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from fairchem.core.common.utils import cg_change_mat
from helpers.ranks import on_ranks
from helpers.stressed import SCALES, WEIGHTS, batch_of, some_frames, stress_config, write_frames
from helpers.stressed import strains_of as strains
from helpers.trainers import EXACT_MODEL

from dens.data.bulk.crystals import LATTICE, label, strained
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.checkpoints.export import export_checkpoint


@pytest.fixture(scope="module")
def frames():
    return some_frames(2, 6)


@pytest.fixture(scope="module")
def src(tmp_path_factory, frames):
    return write_frames(tmp_path_factory.mktemp("crystals") / "data", frames)


def one_step(trainer, batch, step=1):
    trainer.model.train()
    trainer.step, trainer.epoch = step, 0.25
    out = trainer._forward(batch)
    return out, trainer._loss_terms(out, batch)


@pytest.mark.parametrize("head", ["dens.StressHead", "rank2_symmetric_head"])
def test_loss_by_a_plain_loop(src, frames, head):
    """Each part counts on clean structures alone; the energy on all."""
    trainer = DeNSTrainer(**stress_config(src, head=head))
    for step in range(1, 20):
        batch = batch_of(frames)
        out, terms = one_step(trainer, batch, step)
        clean = (batch.sigma == 0).tolist()
        if any(clean) and not all(clean):
            break
    for name, weight in WEIGHTS.items():
        scale, total = SCALES[name], 0.0
        for row, keep in enumerate(clean):
            target = (batch[name][row] - scale["mean"]) / scale["stdev"]
            total += keep * (out[name][row] - target).abs().mean().item()
        assert terms[name].item() == pytest.approx(weight * total / sum(clean), rel=1e-5)
    energy = [abs(out["energy"][i] - (e + 0.5) / 2).item() for i, e in enumerate(batch.energy)]
    assert terms["energy"].item() == pytest.approx(2 * np.mean(energy), rel=1e-5)
    # the stress that is evaluated is composed of both parts in physical units
    value = trainer.in_physical_units(out, batch).values
    irreps = torch.zeros(len(clean), 9)
    irreps[:, :1], irreps[:, 4:] = value["stress_isotropic"], value["stress_anisotropic"]
    torch.testing.assert_close(value["stress"], (irreps @ cg_change_mat(2)).detach())
    trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    error = (value["stress"] - batch.stress.view(-1, 9))[torch.tensor(clean)].abs().mean().item()
    assert metrics["stress_mae"]["metric"] == pytest.approx(error, rel=1e-5)


def gradients(rank: int, src: str, split: list[list[int]]) -> dict[str, np.ndarray]:
    """Compute the gradients of a step on the structures of a rank."""
    trainer = DeNSTrainer(**stress_config(src, model=EXACT_MODEL))
    frames = some_frames(1, 4)
    batch = batch_of([frames[i] for i in split[rank]])
    batch.sample_id = torch.tensor(split[rank])
    out, _ = one_step(trainer, batch, step=3)
    trainer._compute_loss(out, batch).backward()
    return {name: p.grad.numpy() for name, p in trainer._unwrapped_model.named_parameters()}


@pytest.mark.parametrize("shared", [False, True], ids=["data parallel", "graph parallel"])
def test_two_ranks_have_the_gradients_of_one(src, processes, free_port, shared):
    reference = gradients(0, src, [[0, 1, 2, 3]])
    split = [[0, 1, 2, 3]] * 2 if shared else [[0], [1, 2, 3]]
    found = on_ranks(processes, 2, free_port, gradients, src, split, gp=shared)
    largest = max(abs(g).max() for g in reference.values())
    for of_rank in found:
        for name, grad in of_rank.items():
            assert abs(grad - reference[name]).max() < 1e-5 * max(1, largest), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a small model on strains of copper; return the config, the trainer, the checkpoint."""
    folder = tmp_path_factory.mktemp("copper")
    rng = np.random.default_rng(0)
    cells = [strained(bulk("Cu", cubic=True), x * np.eye(3)) for x in rng.uniform(-0.05, 0.05, 8)]
    found = [frame for i, cell in enumerate(cells) for frame in strains(cell, 6, i, 0.003)]
    src = write_frames(folder / "data", found)
    optim = {"max_epochs": 40, "batch_size": 8, "lr_initial": 5e-3, "ema_decay": 0.95}
    optim["eval_every"] = 1000  # never
    config = stress_config(
        src, optim=optim, is_debug=False, run_dir=str(folder), logger="tensorboard"
    )
    config["timestamp_id"] = "run"
    config["model"]["backbone"]["max_neighbors"] = 18
    config["model"]["backbone"]["enforce_max_neighbors_strictly"] = False
    config["model"]["backbone"]["max_radius"] = 5.0
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    return config, trainer, folder / "checkpoints" / "run" / "checkpoint.pt"


def test_a_cell_relaxes_to_the_lattice_constant(trained):
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell * 1.04, scale_atoms=True)
    atoms.calc = load_calculator(trained[2], cpu=True)
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=60)
    assert atoms.cell.lengths() == pytest.approx(LATTICE["Cu"], rel=0.01)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_export_gives_the_stress_of_the_trainer(trained, tmp_path):
    """Stock classes with the exported weights, and the calculator, equal the trainer's model."""
    _, trainer, path = trained
    export_checkpoint(path, tmp_path / "eqv2.pt")
    content = torch.load(tmp_path / "eqv2.pt", weights_only=True)
    assert content["config"]["model"]["heads"]["stress"]["module"] == "rank2_symmetric_head"
    frame = label(strained(bulk("Cu", cubic=True), 0.01 * np.eye(3)))
    expected = trainer.predict(batch_of([frame]), per_image=False, disable_tqdm=True)["stress"]
    for file in (path, tmp_path / "eqv2.pt"):
        atoms = frame.atoms.copy()
        atoms.calc = load_calculator(file, cpu=True)
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(stress, expected.view(3, 3).cpu(), rtol=1e-3, atol=1e-5)


def test_a_resumed_run_ends_as_an_undisturbed_one(src, tmp_path):
    """A run that fails in the fourth step of six goes on from the checkpoint of the second."""
    config = stress_config(src, is_debug=False, run_dir=str(tmp_path), logger="tensorboard")
    config["optimizer"]["checkpoint_every"] = 2
    whole, first, second = (DeNSTrainer(**{**config, "timestamp_id": t}) for t in ("w", "f", "f"))
    whole.train(disable_eval_tqdm=True)

    def fail(batch, draws):
        if first.step == 4:
            raise InterruptedError
        DeNSTrainer.corrupt_batch(first, batch, draws)

    first.corrupt_batch = fail
    with pytest.raises(InterruptedError):
        first.train(disable_eval_tqdm=True)
    second.load_checkpoint(str(tmp_path / "checkpoints" / "f" / "checkpoint.pt"))
    assert second.step < whole.step
    second.train(disable_eval_tqdm=True)
    assert second.step == whole.step
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
