"""Energy and vector heads of EquiformerV2 on the fast path, at the places that the loss needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.equiformer_v2.heads import EqV2ScalarHead, EqV2VectorHead
from fairchem.core.models.equiformer_v2.transformer_block import (
    FeedForwardNetwork,
    SO2EquivariantGraphAttention,
)
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from dens import transfer
from dens.denoising.corruption import denoising_fields
from dens.fairchem1.model.fast.layers import all_atoms, edges_of, embedding_of, speed_up_attention
from dens.fairchem1.model.fast.replayed_blocks import SETTING, can_replay, pad_graph
from dens.fast.attention import vector_attention
from dens.fast.feedforward import scalar_feed_forward
from dens.fast.replay.replayed import Replays
from dens.ranks import zero_gradient


class _ScalarFeedForward(FeedForwardNetwork):
    """Feed-forward network for l = 0 alone; parameters without effect get a zero gradient."""

    def forward(self, input_embedding):
        out = scalar_feed_forward(self, input_embedding.embedding)
        if torch.is_grad_enabled():
            unused = [*self.so3_linear_1.parameters(), *self.grid_mlp.parameters()]
            out = out + zero_gradient(unused)
        return embedding_of(input_embedding, out)


class _VectorAttention(SO2EquivariantGraphAttention):
    """Attention for l = 1 alone, (atoms, 3, 1), at the targets of the given edges."""

    def forward(self, x, atomic_numbers, edges, node_offset):
        targets = slice(node_offset, node_offset + len(x.embedding))
        out = vector_attention(self, all_atoms(x), atomic_numbers, edges, targets)
        if torch.is_grad_enabled():
            orders = self.so2_conv_2.so2_m_conv[1:]
            out = out + zero_gradient([self.proj.bias, *orders.parameters()])
        return out


class ScalarHead(EqV2ScalarHead):
    """fairchem's scalar head, on the fast path if the backbone is."""

    def __init__(self, backbone, *args, **kwargs) -> None:
        super().__init__(backbone, *args, **kwargs)
        if getattr(backbone, "fast", False):
            self.energy_block.__class__ = _ScalarFeedForward


class VectorHead(EqV2VectorHead):
    """fairchem's vector head, on the fast path if the backbone is; a CUDA graph if its blocks are.

    On the fast path, in training, it predicts zeros for the atoms of a corrupted batch that the
    loss does not use: those that :meth:`atoms` leaves out.
    """

    def __init__(self, backbone, *args, **kwargs) -> None:
        super().__init__(backbone, *args, **kwargs)
        self.fast = getattr(backbone, "fast", False)
        if self.fast:
            speed_up_attention(self.force_block, _VectorAttention)
        self.replays = Replays(SETTING) if getattr(backbone, "cuda_graphs", False) else None

    def atoms(self, noise_mask: Tensor) -> Tensor:
        """Mark the atoms whose vectors enter the loss of a corrupted batch: (n_atoms,) bool."""
        return torch.ones_like(noise_mask)

    def _chosen(self, data, graph) -> Tensor | None:
        """Find the edges into the atoms that enter the loss; on a GPU without waiting for it.

        Returns:
            their numbers, in order; None if they are all.
        """
        fields = denoising_fields(data) if self.training else None
        if fields is None:
            return None
        kept = self.atoms(fields.noise_mask)[graph.edge_index[1]]
        counts = getattr(graph, "edges_per_atom", None)
        if counts is None or gp_utils.initialized():
            return kept.nonzero().squeeze(1)
        number = int(counts[self.atoms(transfer.on_host(data).noise_mask)].sum())
        return (~kept).to(torch.uint8).argsort(stable=True)[:number]

    def forward(self, data, emb) -> dict[str, Tensor]:
        if not self.fast:
            return super().forward(data, emb)
        x, graph = emb["node_embedding"], emb["graph"]
        chosen = self._chosen(data, graph)
        if self.replays is not None and can_replay(self):
            return {self.output_name: self._replay(x.embedding, graph, chosen)}
        n_atoms = len(graph.atomic_numbers_full)
        edges = edges_of(self.force_block, graph.edge_index, graph.edge_distance, n_atoms)
        edges = edges.back_to(1, self.force_block.layout)
        if chosen is not None:
            edges = edges.take(chosen)
        args = (x, graph.atomic_numbers_full, edges, graph.node_offset)
        if self.activation_checkpoint:
            out = checkpoint(self.force_block, *args, use_reentrant=not self.training)
        else:
            out = self.force_block(*args)
        out = out.flatten(1)
        if gp_utils.initialized():
            out = gp_utils.gather_from_model_parallel_region(out, dim=0)
        return {self.output_name: out}

    def _replay(self, x: Tensor, graph, chosen: Tensor | None) -> Tensor:
        frames = self.force_block.SO3_rotation[0].to_frames
        edges = graph.edge_distance, graph.edge_index, frames
        if chosen is not None:
            edges = edges[0][chosen], edges[1][:, chosen], edges[2][chosen]
        inputs = pad_graph(x, graph.atomic_numbers_full, *edges, of=len(frames))
        parameters = dict(self.force_block.named_parameters())
        return self.replays(self._predict, inputs, parameters)[: len(x)]

    def _predict(
        self,
        parameters: Mapping[str, Tensor],
        x: Tensor,
        atomic_numbers: Tensor,
        edge_distance: Tensor,
        edge_index: Tensor,
        to_frames: Tensor,
    ) -> Tensor:
        """Predict the vectors of the atoms that have edges: (n_atoms, 3)."""
        block = self.force_block
        with block.SO3_rotation[0].of_graph(to_frames):
            edges = edges_of(block, edge_index, edge_distance, len(x))
        args = embedding_of(block, x), atomic_numbers, edges.back_to(1, block.layout), 0
        return functional_call(block, dict(parameters), args).flatten(1)
