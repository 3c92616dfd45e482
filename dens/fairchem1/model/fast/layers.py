"""Layers of EquiformerV2 of fairchem-core 1.10 with faster ``forward`` methods.

:func:`speed_up` changes the classes of a backbone's modules. Parameters, their names and the
state dict stay, and so does fairchem's code around them: graph, graph parallelism, checkpointing,
normalisation, dropout and drop path.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fairchem.core.models.equiformer_v2 import transformer_block
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Rotation
from fairchem.core.models.equiformer_v2.transformer_block import (
    FeedForwardNetwork,
    SO2EquivariantGraphAttention,
)
from fairchem.core.models.scn.smearing import GaussianSmearing
from torch import Tensor, nn
from torch.nn import functional as F

from dens import transfer
from dens.fairchem1.model.edge_frames import EdgeFrames
from dens.fairchem1.model.layer_norm import SphericalLayerNorm
from dens.fast.attention import Edges, attention, radial_function
from dens.fast.backends import backend_of
from dens.fast.feedforward import feed_forward
from dens.fast.layout import OrderMajor
from dens.fast.ops import EdgeLists, list_edges

# settings of the backbone, with the values that the fast path covers
_COVERED = {
    "use_gate_act": False,
    "use_sep_s2_act": True,
    "use_grid_mlp": True,
    "use_m_share_rad": False,
}

_LOWEST = -80.0  # smallest exponent of a Gaussian


def not_covered(backbone: nn.Module) -> str | None:
    """Return the first setting of an EquiformerV2 backbone that the fast path does not cover."""
    if backbone.lmax_list[0] < 1 or backbone.mmax_list[0] < 1:
        return f"lmax_list = {backbone.lmax_list}, mmax_list = {backbone.mmax_list}"
    for name, value in _COVERED.items():
        if bool(getattr(backbone, name)) != value:
            return f"{name} = {getattr(backbone, name)}"
    return None


def speed_up(backbone: nn.Module) -> bool:
    """Switch an EquiformerV2 backbone to the fast path, or warn why that is not possible.

    Returns:
        Whether it takes the fast path; if not, nothing is changed and a warning names the setting.
    """
    setting = not_covered(backbone)
    if setting is not None:
        logging.warning(
            f"the fast path does not cover {setting} (model.backbone); using fairchem's own modules"
        )
        return False
    layout = OrderMajor(backbone.lmax_list[0], backbone.mmax_list[0])
    rotation = backbone.SO3_rotation[0]
    rotation.__class__ = _Rotation
    rotation.edges = EdgeFrames(layout.lmax)
    rotation.register_buffer("rows", torch.tensor(layout.rows), persistent=False)
    rotation.register_buffer("rescale", torch.tensor(layout.rescale), persistent=False)
    backbone.distance_expansion.__class__ = _Gaussians
    backbone.edge_degree_embedding.__class__ = _EdgeDegreeEmbedding
    for norm in filter(SphericalLayerNorm.covers, backbone.modules()):
        norm.__class__ = SphericalLayerNorm
    for block in backbone.blocks:
        speed_up_attention(block.ga, _Attention)
        block.ffn.__class__ = _FeedForward
        _set_grid(block.ffn, layout.lmax, layout.lmax, slice(None))
    return True


def speed_up_attention(module: SO2EquivariantGraphAttention, cls: type) -> None:
    """Change the class of an attention module to ``cls``, and add its buffers."""
    module.__class__ = cls
    module.layout = OrderMajor(module.lmax_list[0], module.mmax_list[0])
    _set_grid(module, module.layout.lmax, module.layout.mmax, module.layout.reduced_rows)


def _set_grid(module: nn.Module, lmax: int, mmax: int, rows) -> None:
    """Register the matrices of the grid as buffers, (points, rows), outside the state dict."""
    grid = module.SO3_grid[lmax][mmax]
    for name in ("to_grid", "from_grid"):
        matrix = getattr(grid, f"{name}_mat").flatten(0, 1)[:, rows].contiguous()
        module.register_buffer(name, matrix, persistent=False)


def embedding_of(like: SO3_Embedding | nn.Module, values: Tensor) -> SO3_Embedding:
    """Wrap features, (n_atoms, (lmax + 1)^2, channels), for fairchem's modules."""
    out = SO3_Embedding(0, like.lmax_list.copy(), values.shape[2], values.device, values.dtype)
    out.set_embedding(values)
    return out


def edges_of(module: nn.Module, edge_index: Tensor, distance: Tensor, n_atoms: int) -> Edges:
    """Collect what a module needs of the edges of the present batch."""
    rotation = module.SO3_rotation[0]
    lists = rotation.lists(edge_index, n_atoms)
    return Edges(*edge_index, distance, rotation.to_frames, rotation.from_frames, lists)


def all_atoms(x: SO3_Embedding) -> Tensor:
    """Gather the features of all atoms, over the ranks that share a graph."""
    gp = transformer_block.gp_utils  # its gather sums gradients: see graph_parallel.py
    if not gp.initialized():
        return x.embedding
    return gp.gather_from_model_parallel_region(x.embedding, dim=0)


class _Rotation(SO3_Rotation):
    """Rotation that also keeps what all layers share, the Wigner matrices in order-major layout.

    And, where a backend sums over the edges of each atom, the lists of these.
    """

    def set_wigner(self, rot_mat3x3):
        # autocast would round the directions of the edges, and the matrices once for each factor
        with torch.autocast(rot_mat3x3.device.type, enabled=False):
            if transfer.is_host(rot_mat3x3.device):
                super().set_wigner(rot_mat3x3)
            else:
                self.wigner = self.edges.wigner(rot_mat3x3)
                self.wigner_inv = self.wigner.transpose(1, 2)
        self.to_frames = self.wigner[:, self.rows]
        self.from_frames = self._back(self.to_frames)
        self.listed = None

    def _back(self, to_frames: Tensor) -> Tensor:
        return to_frames * self.rescale.to(to_frames.dtype)[:, None]

    @contextmanager
    def of_graph(self, to_frames: Tensor) -> Iterator[None]:
        """Rotate the edges of another graph in a ``with`` block."""
        own = self.to_frames, self.from_frames, self.listed
        self.to_frames, self.from_frames, self.listed = to_frames, self._back(to_frames), None
        try:
            yield
        finally:
            self.to_frames, self.from_frames, self.listed = own

    def lists(self, edge_index: Tensor, n_atoms: int) -> tuple[EdgeLists, EdgeLists] | None:
        """List the edges of each target and of each source, once for a graph."""
        if backend_of(edge_index.device) != "triton":
            return None
        if self.listed is None or self.listed[0] is not edge_index:
            found = tuple(list_edges(edge_index[side], n_atoms) for side in (1, 0))
            self.listed = edge_index, found
        return self.listed[1]


class _Gaussians(GaussianSmearing):
    """Gaussians set to zero far from their centre, where exp underflows and is ten times slower."""

    def forward(self, dist):
        exponent = self.coeff * (dist.view(-1, 1) - self.offset).square()
        return F.threshold(exponent.clamp(min=_LOWEST).exp(), math.exp(_LOWEST + 1), 0.0)


class _EdgeDegreeEmbedding(EdgeDegreeEmbedding):
    """Edge-degree embedding from the columns of m = 0 alone, as the others are zero."""

    def forward(self, atomic_numbers, edge_distance, edge_index, num_nodes, node_offset=0):
        edges = edges_of(self, edge_index, edge_distance, len(atomic_numbers))
        radial = radial_function(self, self.rad_func.net, atomic_numbers, edges)
        radial = radial.unflatten(1, (self.m_0_num_coefficients, -1))
        back = edges.back[:, : self.m_0_num_coefficients].transpose(1, 2)
        messages = torch.bmm(back, radial)
        summed = messages.new_zeros(num_nodes, *messages.shape[1:])
        summed = summed.index_add(0, edges.target - node_offset, messages)
        return embedding_of(self, summed / self.rescale_factor)


class _Attention(SO2EquivariantGraphAttention):
    def forward(self, x, atomic_numbers, edge_distance, edge_index, node_offset=0):
        targets = slice(node_offset, node_offset + len(x.embedding))
        edges = edges_of(self, edge_index, edge_distance, len(atomic_numbers))
        return embedding_of(x, attention(self, all_atoms(x), atomic_numbers, edges, targets))


class _FeedForward(FeedForwardNetwork):
    def forward(self, input_embedding):
        return embedding_of(input_embedding, feed_forward(self, input_embedding.embedding))
