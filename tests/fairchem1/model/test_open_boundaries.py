"""Graphs of EquiformerV2: open ones without a cell, and fairchem's periodic ones, found faster."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from fairchem.core.common.utils import get_pbc_distances, radius_graph_pbc
from fairchem.core.models.base import HydraModel
from helpers.structures import make_batch
from helpers.trainers import BACKBONE, DENS, MODEL, OPTIM, STOCK_MODEL, trainer_config
from torch_geometric.data import Batch, Data

from dens.data.store.lmdb import LmdbWriter
from dens.fairchem1 import DeNSTrainer, EquiformerV2Backbone

OPEN = {**BACKBONE, "use_pbc": False}


def molecules(sizes=(5, 1, 9), seed: int = 0, **fields) -> list[Data]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Data(
            pos=torch.rand(n, 3, generator=generator) * 4,
            atomic_numbers=torch.randint(1, 10, (n,), generator=generator),
            natoms=n,
            fixed=torch.zeros(n),
            tags=torch.zeros(n, dtype=torch.long),
            energy=0.5 * i,
            forces=torch.randn(n, 3, generator=generator),
            sid=0,
            fid=i,
            **fields,
        )
        for i, n in enumerate(sizes)
    ]


def model(**backbone) -> HydraModel:
    torch.manual_seed(0)
    settings = {"model": "dens.EquiformerV2Backbone", **OPEN, **backbone}
    return HydraModel(
        backbone=settings, heads=MODEL["heads"], otf_graph=True, pass_through_head_outputs=True
    ).eval()


def predict(hydra, data) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # edge frames have a random direction
    return hydra(Batch.from_data_list(data))


@pytest.mark.parametrize("strict", [True, False])
def test_edges_are_those_of_fairchem_in_a_wide_box(strict):
    cell = 100 * torch.eye(3)[None]
    batch = Batch.from_data_list(molecules(cell=cell))
    expected, offsets, count = radius_graph_pbc(batch, 3.0, 4, strict)
    assert not offsets.any()
    backbone = EquiformerV2Backbone(**OPEN)
    graph = backbone.generate_graph(batch, 3.0, 4, enforce_max_neighbors_strictly=strict)
    assert torch.equal(graph.edge_index, expected)
    assert graph.neighbors.tolist() == count.tolist()
    source, target = expected
    assert torch.equal(graph.edge_distance_vec, batch.pos[source] - batch.pos[target])
    assert torch.equal(graph.edge_distance, graph.edge_distance_vec.norm(dim=-1))


def test_predictions_do_not_depend_on_a_cell():
    hydra = model()
    expected = predict(hydra, molecules())
    assert expected["energy"].abs().min() > 0
    for cell in (torch.zeros(1, 3, 3), 3 * torch.eye(3)[None], 50 * torch.eye(3)[None]):
        found = predict(hydra, molecules(cell=cell))
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_predictions_equal_those_of_the_periodic_graph_in_a_wide_box():
    boxed = molecules(cell=100 * torch.eye(3)[None])
    expected = predict(model(use_pbc=True), boxed)
    found = predict(model(), molecules())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_structures_do_not_see_each_other():
    hydra, parts = model(), molecules((5, 9))
    together = predict(hydra, parts)
    alone = [predict(hydra, [data]) for data in parts]
    for name, value in together.items():
        expected = torch.cat([out[name] for out in alone])
        scale = expected.abs().max().item()
        torch.testing.assert_close(value, expected, atol=1e-3 * scale, rtol=0)


def test_forces_turn_with_the_molecule():
    hydra, parts = model(), molecules((9,))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * turn.det()
    before = predict(hydra, parts)
    parts[0].pos = parts[0].pos @ turn.T - 40
    after = predict(hydra, parts)
    torch.testing.assert_close(after["energy"], before["energy"], atol=0, rtol=1e-3)
    scale = before["forces"].abs().max().item()
    expected = before["forces"] @ turn.T
    torch.testing.assert_close(after["forces"], expected, atol=1e-2 * scale, rtol=0)


def boxed(sizes, pbc=None, **fields) -> list[Data]:
    parts = molecules(sizes, cell=30 * torch.eye(3)[None], **fields)
    for i, data in enumerate(parts):
        if pbc is not None:
            data.pbc = torch.tensor([pbc[i]] * 3)[None]
    return parts


@pytest.mark.parametrize("use_pbc", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_atoms_without_neighbors_have_the_energy_of_their_node(fast, use_pbc):
    """It is the same alone and beside others; forces are zero."""
    hydra = model(use_pbc=use_pbc, fast=fast)
    lone, pair, others = boxed((1,)), boxed((1, 1)), boxed((1, 9, 1))
    alone, two, among = (predict(hydra, parts) for parts in (lone, pair, others))
    assert alone["energy"].abs().min() > 0
    torch.testing.assert_close(alone["energy"][0], two["energy"][0])
    torch.testing.assert_close(alone["energy"][0], among["energy"][0])
    assert not alone["forces"].any()
    assert alone["forces"].shape == (1, 3)


@pytest.mark.parametrize("fast", [True, False])
def test_every_parameter_has_a_gradient_without_edges(new_trainer, fast):
    backbone = {**MODEL["backbone"], "fast": fast}
    trainer = new_trainer(model={**MODEL, "backbone": backbone}, dens={**DENS, "prob": 1.0})
    trainer.model.train()
    for batch in (Batch.from_data_list(boxed((1, 1))), make_batch(2)):
        trainer.step, trainer.epoch = 1, 0.25
        trainer.optimizer.zero_grad()
        loss = trainer._compute_loss(trainer._forward(batch), batch)
        loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())


@pytest.mark.parametrize("fast", [True, False])
def test_structures_with_different_periodic_directions_share_a_batch(fast):
    hydra = model(use_pbc=True, fast=fast)
    parts = boxed((5, 9), pbc=(True, False))
    together = predict(hydra, parts)["energy"]
    for i, data in enumerate(parts):
        alone = predict(hydra, [data])["energy"]
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-3, rtol=1e-3)


def batch_of(structures: list[Atoms]) -> Batch:
    return Batch.from_data_list(
        [
            Data(
                pos=torch.tensor(atoms.positions, dtype=torch.float32),
                cell=torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
                atomic_numbers=torch.tensor(atoms.numbers),
                natoms=len(atoms),
            )
            for atoms in structures
        ]
    )


def perfect_crystals() -> Batch:
    """Make crystals with cells of one, two and many atoms, where every distance occurs often."""
    slab = fcc111("Pt", (2, 2, 3), vacuum=6.0)
    slab.pbc = True
    return batch_of([bulk("Cu", "fcc", 3.61), bulk("Ti", "hcp", 2.95), bulk("Si").repeat(2), slab])


def partly_perfect() -> Batch:
    """Make slabs with ideal lower layers, and a crystal whose atoms have more neighbours."""
    rng = np.random.default_rng(0)
    structures = [fcc111(name, (2, 2, 5), vacuum=6.0) for name in ("Cu", "Pt", "Ag")]
    for slab in structures:
        slab.pbc = True
        slab.positions[12:] += rng.normal(scale=0.05, size=(8, 3))
    structures.insert(1, bulk("Cu", "fcc", 3.3).repeat(2))
    structures[1].rattle(0.05, rng=rng)
    return batch_of(structures)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [make_batch, perfect_crystals, partly_perfect])
def test_periodic_graphs_are_those_of_fairchem(make, strict, fast):
    """Edges, their order and all derived values agree to the last bit, also with ties."""
    batch, backbone = make(), EquiformerV2Backbone(**BACKBONE, fast=fast)
    for cutoff, limit in ((4.0, 10), (6.0, 20), (6.0, 300)):
        edges, offsets, count = radius_graph_pbc(batch, cutoff, limit, strict)
        args = batch.pos, edges, batch.cell, offsets, count
        expected = get_pbc_distances(*args, return_offsets=True, return_distance_vec=True)
        graph = backbone.generate_graph(batch, cutoff, limit, enforce_max_neighbors_strictly=strict)
        assert offsets.any()
        assert torch.equal(graph.cell_offsets, offsets)
        assert graph.neighbors.tolist() == count.tolist()
        assert torch.equal(graph.edge_index, expected["edge_index"])
        assert torch.equal(graph.edge_distance, expected["distances"])
        assert torch.equal(graph.edge_distance_vec, expected["distance_vec"])
        assert torch.equal(graph.offset_distances, expected["offsets"])


def test_the_fast_graph_has_edges_between_atoms_that_are_cells_apart():
    """fairchem's search misses them: it looks at no more cells than fit the cutoff."""
    data = Data(
        pos=torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]),
        cell=4 * torch.eye(3)[None],
        atomic_numbers=torch.tensor([1, 1]),
        natoms=2,
    )
    inside, moved = Batch.from_data_list([data]), Batch.from_data_list([data])
    moved.pos = moved.pos + torch.tensor([[0.0, 0, 0], [12.0, 0, 0]])
    lengths = {}
    for fast in (True, False):
        backbone = EquiformerV2Backbone(**BACKBONE, fast=fast)
        for name, batch in (("inside", inside), ("moved", moved)):
            found = backbone.generate_graph(batch, 3.5, 50)
            lengths[fast, name] = sorted(found.edge_distance.tolist())
    assert lengths[True, "moved"] == lengths[True, "inside"] == lengths[False, "inside"]
    assert len(lengths[False, "moved"]) < len(lengths[False, "inside"])


def test_stored_edges_are_used_by_the_fast_path_too():
    batch = make_batch()
    batch.edge_index, batch.cell_offsets, batch.neighbors = radius_graph_pbc(batch, 3.0, 4, True)
    backbone = EquiformerV2Backbone(**{**BACKBONE, "otf_graph": False}, fast=True)
    assert torch.equal(backbone.generate_graph(batch).edge_index, batch.edge_index)


@pytest.mark.parametrize("trainer", ["dens", "stock"])
def test_training_on_molecules(tmp_path, trainer):
    """DeNS trains, and so does the baseline: stock trainer and heads on our backbone."""
    from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer

    with LmdbWriter(tmp_path / "train") as writer:
        for data in molecules((5, 9, 1, 1, 1, 9, 1, 5, 1, 7, 1, 3, 1, 2)):
            writer.write(data)
    heads = MODEL if trainer == "dens" else STOCK_MODEL
    backbone = {"model": "dens.EquiformerV2Backbone", **OPEN, "force_encoding": trainer == "dens"}
    config = trainer_config(
        str(tmp_path / "train"),
        model={**heads, "backbone": backbone},
        dens={**DENS, "prob": 1.0},
    )
    del config["dataset"]["train"]["key_mapping"]
    cls = DeNSTrainer
    if trainer == "stock":
        cls = EquiformerV2ForcesTrainer
        config["optimizer"] = copy.deepcopy(OPTIM)
    run = cls(**config)
    before = [p.clone() for p in run.model.parameters()]
    run.train(disable_eval_tqdm=True)
    assert run.best_val_metric < 1e9
    changed = [not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
