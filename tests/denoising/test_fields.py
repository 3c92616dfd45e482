"""Test the denoising fields of a batch: micro-batches, copies, and the note of corruption."""

import pickle

import pytest
import torch
from helpers.structures import make_batch
from torch_geometric.data import Batch

from dens.data.batches import split_batch
from dens.denoising.config import parse_config
from dens.denoising.corruption import DenoisingFields, attach, corrupt, denoising_fields
from dens.denoising.objective import DeNSObjective
from dens.fields import DENOISING_FIELDS
from dens.random import make_generator

CONFIG = parse_config({"prob": 1.0, "denoising_coefficient": 1.0, "sigma": 0.1})
OBJECTIVE = DeNSObjective(CONFIG)
COPIES = {
    "device": lambda batch: batch.to("cpu"),
    "clone": lambda batch: batch.clone(),
    "pickle": lambda batch: pickle.loads(pickle.dumps(batch)),
}


def corrupted(eligible, n=3):
    batch = make_batch(n)
    args = (batch.pos, batch.batch, batch.natoms, CONFIG, make_generator(0))
    corruption = corrupt(*args, fixed=batch.fixed, eligible=torch.tensor(eligible))
    attach(batch, corruption, batch.forces)
    return batch


def test_levels_of_the_table():
    assert DenoisingFields._fields == tuple(field.name for field in DENOISING_FIELDS)
    batch = corrupted([True, False, True])
    rows = {"atom": len(batch.pos), "structure": len(batch.natoms)}
    for field in DENOISING_FIELDS:
        assert len(batch[field.name]) == rows[field.level]


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_the_note_travels_with_the_batch(copy, monkeypatch):
    """It is a plain bool, and reading it asks no tensor."""
    batches = copy(corrupted([True] * 3)), copy(corrupted([False] * 3))
    monkeypatch.setattr(torch.Tensor, "any", None)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)
    for batch, expected in zip(batches, (True, False), strict=True):
        assert batch.corrupted is expected
        assert (denoising_fields(batch) is not None) is expected


def test_a_batch_without_the_note_is_asked():
    for eligible in ([False, True, False], [False] * 3):
        batch = corrupted(eligible)
        del batch.corrupted
        assert (denoising_fields(batch) is not None) == any(eligible)
        batch.corrupted = torch.tensor([not any(eligible)])  # as collated from single structures
        assert (denoising_fields(batch) is not None) == any(eligible)


def test_micro_batches_have_their_own_rows_and_note():
    batch = corrupted([True, True, False, False, True], 5)
    parts = split_batch(batch, 2, Batch.from_data_list, OBJECTIVE)
    assert [part.corrupted for part in parts] == [True, False, True]
    for field in DENOISING_FIELDS:
        assert torch.equal(torch.cat([part[field.name] for part in parts]), batch[field.name])
    assert all(
        "noise" not in part
        for part in split_batch(make_batch(), 2, Batch.from_data_list, OBJECTIVE)
    )
