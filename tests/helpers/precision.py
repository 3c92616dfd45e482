"""Double precision for models, with graph, edge frames and random numbers of single."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


@contextmanager
def double() -> Iterator[None]:
    """Use double precision by default, to build a model and run its steps.

    ``torch.rand`` still draws in single precision, as it gives other numbers in double.
    """
    rand = torch.rand

    def rounded(*args, dtype=None, **kwargs):
        drawn = rand(*args, dtype=torch.float32, **kwargs)
        return drawn.to(dtype or torch.get_default_dtype())

    with default_dtype(torch.float64), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rounded)
        yield


def geometry_in_single(model):
    """Make a model in double precision compute edges and frames in single precision."""
    backbone = model.backbone
    generate_graph, frames = backbone.generate_graph, backbone._init_edge_rot_mat

    def graph_in_single(data, **kwargs):
        single = data.clone()
        single.pos, single.cell = data.pos.float(), data.cell.float()
        with default_dtype(torch.float32):
            graph = generate_graph(single, **kwargs)
        names = ("edge_distance", "edge_distance_vec")
        return dataclasses.replace(graph, **{n: getattr(graph, n).double() for n in names})

    def frames_in_single(data, edge_index, vectors):
        with default_dtype(torch.float32):
            return _rotations(frames(data, edge_index, vectors.float()).double())

    backbone.generate_graph = graph_in_single
    backbone._init_edge_rot_mat = frames_in_single
    return model


def _rotations(rounded):
    """Make rotations of matrices that are rotations up to rounding: (n, 3, 3)."""
    rows = []
    for row in rounded.unbind(1):
        for earlier in rows:
            row = row - (row * earlier).sum(1, keepdim=True) * earlier
        rows.append(row / row.norm(dim=1, keepdim=True))
    return torch.stack(rows, dim=1)


def in_double(batch):
    """Return a copy of the batch with its numbers in double precision."""
    batch = batch.clone()
    for name in ("pos", "cell", "forces", "noise", "noise_forces", "sigma"):
        if name in batch:
            batch[name] = batch[name].double()
    return batch
