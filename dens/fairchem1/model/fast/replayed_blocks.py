"""Blocks of EquiformerV2 that run as CUDA graphs in training, on graphs padded to a few sizes.

A step of these models starts thousands of kernels, and a GPU waits for a host that starts them one
by one. The kernels of all blocks, forward or backward, are recorded once for each size of batch and
launched together from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding
from torch import Tensor, nn

from dens import transfer
from dens.fairchem1.model.fast.layers import embedding_of
from dens.fast.replay.padding import pad_edges, pad_rows, padded_size
from dens.fast.replay.replayed import Replays
from dens.patching import replaced


class ReplayedBlocks(nn.ModuleList):
    """List of blocks that can run as one: then its first item is all of them.

    The atoms that are appended make up a further structure, and exchange messages among themselves.
    """

    joined = False  # whether they run as one at present
    replays: Replays

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Run as one in a ``with`` block, in training on a GPU where ranks share no graphs."""
        possible = self.training and torch.is_grad_enabled() and not gp_utils.initialized()
        on_gpu = not transfer.is_host(next(self.parameters()).device)
        with replaced(self, joined=possible and on_gpu):
            yield

    def __getitem__(self, index):
        if not self.joined:
            return super().__getitem__(index)
        return self._run_all if index == 0 else _unchanged

    def _run_all(
        self,
        x: SO3_Embedding,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        node_offset: int,
    ) -> SO3_Embedding:
        n_atoms, n_edges = len(atomic_numbers), edge_index.shape[1]
        atoms, edges = padded_size(n_atoms + 1), padded_size(n_edges)
        structures = int(batch.max()) + 1
        inputs = [
            pad_rows(x.embedding, atoms),
            pad_rows(atomic_numbers, atoms),
            pad_rows(edge_distance, edges),
            pad_edges(edge_index, n_atoms, edges, atoms),
            pad_rows(self._rotation().to_frames, edges),
            pad_rows(batch - structures, atoms) + structures,
        ]
        run = partial(self._run, structures + 1)
        out = self.replays(run, inputs, list(self.parameters()), key=structures)
        x.embedding = out[:n_atoms]
        return x

    def _rotation(self) -> nn.Module:
        return next(iter(self)).ga.SO3_rotation[0]

    def _run(
        self,
        structures: int,
        embedding: Tensor,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        to_frames: Tensor,
        batch: Tensor,
    ) -> Tensor:
        """Run all blocks on padded tensors."""
        batch.max = lambda: structures - 1  # drop path asks for it: it must not wait
        rotation = self._rotation()
        from_frames = to_frames * rotation.rescale.to(to_frames.dtype)[:, None]
        x = embedding_of(next(iter(self)).ga, embedding)
        with replaced(rotation, to_frames=to_frames, from_frames=from_frames, listed=None):
            for block in self:
                x = block(x, atomic_numbers, edge_distance, edge_index, batch=batch, node_offset=0)
        return x.embedding


def _unchanged(x: SO3_Embedding, *args, **kwargs) -> SO3_Embedding:
    return x


def replay_blocks(backbone: nn.Module) -> bool:
    """Let the blocks of a backbone run as CUDA graphs, or warn why that is not possible."""
    reason = "fast: false" if not backbone.fast else ""
    reason = reason or ("activation_checkpoint: true" if backbone.activation_checkpoint else "")
    if reason:
        logging.warning(f"model.backbone.cuda_graphs takes no effect with {reason}")
        return False
    backbone.blocks.__class__ = ReplayedBlocks
    backbone.blocks.replays = Replays("model.backbone.cuda_graphs")
    return True
