"""EquiformerV2 with a force encoding and a noise head, by subclass and hook.

For clean batches (see :func:`dens.denoising.corruption.denoising_fields`), so in every evaluation,
the results equal those of fairchem's own classes with the same weights: bit for bit with
``fast: false``, up to rounding on the fast path.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2 import equiformer_v2
from torch import Tensor

from dens import transfer
from dens.denoising.corruption import denoising_fields
from dens.fairchem1.backbones.attached import EncodesForces
from dens.fairchem1.model.fast.layers import speed_up
from dens.fairchem1.model.fast.output_heads import ScalarHead, VectorHead
from dens.fairchem1.model.fast.replayed_blocks import replay_blocks
from dens.fairchem1.model.graph import RadiusGraphs
from dens.fairchem1.model.no_edges import allow_no_edges


@registry.register_model("dens_equiformer_v2_backbone")
class EquiformerV2Backbone(EncodesForces, RadiusGraphs, equiformer_v2.EquiformerV2Backbone):
    """EquiformerV2 that adds the encoded forces of corrupted atoms to its first node embedding.

    With ``use_pbc: false``, and always on the fast path, the graph comes from
    :mod:`dens.graphs.radius` (see :mod:`dens.fairchem1.model.graph`).

    Args:
        fast: whether to take the fast path (:mod:`dens.fairchem1.model.fast`) if it covers the
            other settings; the heads of this module follow.
        cuda_graphs: whether the blocks run as CUDA graphs in training on a GPU; this needs the fast
            path, and takes no effect with ``activation_checkpoint`` or where ranks share a graph.
        kwargs: settings of :class:`~dens.fairchem1.backbones.attached.EncodesForces`, and of
            fairchem's ``equiformer_v2_backbone``.
    """

    shares_graphs = True

    def __init__(self, *, fast: bool = True, cuda_graphs: bool = False, **kwargs: Any) -> None:
        allow_no_edges()
        super().__init__(**kwargs)
        self.fast = fast and speed_up(self)
        self.cuda_graphs = cuda_graphs and replay_blocks(self)
        self.edge_degree_embedding.register_forward_hook(self._add_encoding)

    def forward(self, data) -> dict[str, Any]:
        """Run fairchem's forward, its blocks as one where they can be CUDA graphs."""
        with self.blocks.as_one() if self.cuda_graphs else nullcontext():
            return super().forward(data)

    def _init_edge_rot_mat(self, data, edge_index, edge_distance_vec):
        if len(edge_distance_vec) == 0:  # fairchem looks for the shortest edge
            return edge_distance_vec.new_zeros(0, 3, 3)
        if self.fast and not transfer.is_host(edge_distance_vec.device):
            return self.SO3_rotation[0].edges.frames(edge_distance_vec)
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)

    def _add_encoding(self, module, args, output):
        # the edge-degree embedding is the last term added to the first node embedding; under graph
        # parallelism it holds the atoms of this rank only
        if self.encoded is not None:
            num_nodes, node_offset = args[3], args[4]
            encoded = self.encoded.narrow(0, node_offset, num_nodes)
            output.embedding = output.embedding + encoded
        return output


@registry.register_model("dens_energy_head")
class EnergyHead(ScalarHead):
    """fairchem's scalar head, for the energy of the original structure, corrupted or not."""


@registry.register_model("dens_force_head")
class ForceHead(VectorHead):
    """fairchem's vector head, for the forces of atoms that are not corrupted."""

    def atoms(self, noise_mask: Tensor) -> Tensor:
        return ~noise_mask


@registry.register_model("dens_noise_head")
class NoiseHead(VectorHead):
    """Second vector head, for the noise in units of s_N; skipped if no atom is corrupted."""

    predicts_noise = True

    def __init__(self, backbone, output_name: str = "noise") -> None:
        super().__init__(backbone, output_name)

    def atoms(self, noise_mask: Tensor) -> Tensor:
        return noise_mask

    def forward(self, data, emb) -> dict[str, Tensor]:
        """Predict ``{"noise": (n_atoms, 3)}`` for a corrupted batch; nothing for a clean one."""
        return {} if denoising_fields(data) is None else super().forward(data, emb)


@registry.register_model("dens_equiformer_v2")
class EquiformerV2DeNS(HydraModel):
    """Backbone and three heads, built from one flat list of settings as in the authors' configs.

    It has the parameter names of ``hydra`` with the classes of this module.

    Args:
        kwargs: settings of :class:`EquiformerV2Backbone`.
    """

    applies_dens = True

    def __init__(self, otf_graph: bool = True, **kwargs: Any) -> None:
        super().__init__(
            backbone={"model": "dens_equiformer_v2_backbone", "otf_graph": otf_graph, **kwargs},
            heads={
                "energy": {"module": "dens_energy_head"},
                "forces": {"module": "dens_force_head"},
                "noise": {"module": "dens_noise_head"},
            },
            otf_graph=otf_graph,
            pass_through_head_outputs=True,
        )
