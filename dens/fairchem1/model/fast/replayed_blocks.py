"""Blocks of EquiformerV2 that run as CUDA graphs in training, on graphs padded to a few sizes.

A step of these models starts thousands of kernels, and a GPU waits for a host that starts them one
by one. The kernels of all blocks, forward or backward, are recorded once for each size of batch and
launched together from then on. The atoms that are appended make up a further structure, and
exchange messages among themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding
from torch import Tensor, nn
from torch.func import functional_call

from dens import transfer
from dens.fairchem1.model.fast.layers import embedding_of
from dens.fast.replay.padding import pad_edges, pad_rows, padded_size
from dens.fast.replay.replayed import Replays

SETTING = "model.backbone.cuda_graphs"


class ReplayedBlocks(nn.ModuleList):
    """List of blocks that can run as one: then its first item is all of them."""

    joined = False  # whether they run as one at present
    replays: Replays

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Run as one in a ``with`` block, where that is possible."""
        self.joined = can_replay(self)
        try:
            yield
        finally:
            self.joined = False

    def __getitem__(self, index):
        if not self.joined:
            return super().__getitem__(index)
        return self._replay if index == 0 else _unchanged

    def _replay(
        self,
        x: SO3_Embedding,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        node_offset: int,
    ) -> SO3_Embedding:
        frames = next(iter(self)).ga.SO3_rotation[0].to_frames
        inputs = pad_graph(x.embedding, atomic_numbers, edge_distance, edge_index, frames)
        structures = int(batch.max()) + 1
        inputs.append(pad_rows(batch - structures, len(inputs[0])) + structures)
        run = partial(_run_blocks, self, structures + 1)
        out = self.replays(run, inputs, dict(self.named_parameters()), key=structures)
        x.embedding = out[: len(x.embedding)]
        return x

    def forward(
        self,
        embedding: Tensor,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        to_frames: Tensor,
        batch: Tensor,
    ) -> Tensor:
        """Run all blocks, and return the features: (n_atoms, (lmax + 1)^2, channels)."""
        first = next(iter(self)).ga
        x = embedding_of(first, embedding)
        with first.SO3_rotation[0].of_graph(to_frames):
            for block in self:
                x = block(x, atomic_numbers, edge_distance, edge_index, batch=batch, node_offset=0)
        return x.embedding


def _run_blocks(
    blocks: ReplayedBlocks, structures: int, parameters: Mapping[str, Tensor], *inputs: Tensor
) -> Tensor:
    *_, batch = inputs
    batch.max = lambda: structures - 1  # drop path asks for it, and must not wait
    return functional_call(blocks, dict(parameters), inputs)


def _unchanged(x: SO3_Embedding, *args, **kwargs) -> SO3_Embedding:
    return x


def can_replay(module: nn.Module) -> bool:
    """Tell whether a module takes CUDA graphs: in training on a GPU that shares no graph."""
    trains = module.training and torch.is_grad_enabled() and not gp_utils.initialized()
    return trains and not transfer.is_host(next(module.parameters()).device)


def pad_graph(
    embedding: Tensor,
    atomic_numbers: Tensor,
    edge_distance: Tensor,
    edge_index: Tensor,
    to_frames: Tensor,
    of: int | None = None,
) -> list[Tensor]:
    """Append atoms and edges up to one of few sizes: the same tensors with more rows.

    Args:
        of: number of the edges that those given were chosen from; they are then padded to
            quarters of what all are padded to.
    """
    n_atoms, n_edges = len(atomic_numbers), len(edge_distance)
    atoms, quarter = padded_size(n_atoms + 1), padded_size((of or n_edges) + 1) // 4
    edges = quarter * (n_edges // quarter + 1)
    return [
        pad_rows(embedding, atoms),
        pad_rows(atomic_numbers, atoms),
        pad_rows(edge_distance, edges),
        pad_edges(edge_index, n_atoms, edges, atoms),
        pad_rows(to_frames, edges),
    ]


def replay_blocks(backbone: nn.Module) -> bool:
    """Let the blocks of a backbone run as CUDA graphs, or warn why that is not possible."""
    hinders = {
        "fast: false": not backbone.fast,
        "activation_checkpoint: true": backbone.activation_checkpoint,
        "--gp-gpus": gp_utils.initialized(),
    }
    for setting, there in hinders.items():
        if there:
            logging.warning(f"{SETTING} takes no effect with {setting}")
            return False
    backbone.blocks.__class__ = ReplayedBlocks
    backbone.blocks.replays = Replays(SETTING)
    return True
