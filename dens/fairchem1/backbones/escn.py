"""eSCN (arXiv:2302.03655) with force encoding and noise head, the paper's second network."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.escn.escn import eSCNBackbone, eSCNForceHead

from dens.fairchem1.backbones.attached import EncodesForces, NoiseOutput
from dens.fairchem1.model.graph import RadiusGraphs

_SMALL = 1e-3  # of the authors' code, after eSCN's own factors of 0.001


@registry.register_model("dens_escn_backbone")
class ESCNBackbone(EncodesForces, RadiusGraphs, eSCNBackbone):
    """eSCN that adds the encoded forces of corrupted atoms to the input of its first layer.

    Its energies and forces are sums over points on spheres, and as equivariant as those are dense
    (``num_sphere_samples``, ``resolution``). The encoding starts with weights of at most 0.001, as
    in the authors' code of arXiv:2403.09549.

    Args:
        kwargs: settings of :class:`~dens.fairchem1.backbones.attached.EncodesForces`, and of
            fairchem's ``escn_backbone``.

    Raises:
        ValueError: a batch in which no atom has a neighbour, which fairchem's eSCN cannot take.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.force_encoding is not None:
            with torch.no_grad():
                self.force_encoding.weight.mul_(_SMALL)
        if self.num_layers > 0:
            self.layer_blocks[0].register_forward_pre_hook(self._add_encoding)

    def _add_encoding(self, block, args):
        x = args[0]  # the element embedding, which only this layer reads
        if self.encoded is not None:
            x.embedding = x.embedding + self.encoded.to(x.embedding.dtype)

    def _init_edge_rot_mat(self, data, edge_index, edge_distance_vec):
        if len(edge_distance_vec) == 0:
            raise ValueError(
                f"no atom of a batch has a neighbour within cutoff = {self.cutoff} Å, which eSCN "
                "of fairchem-core 1.10 cannot take (model.backbone.cutoff)"
            )
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


@registry.register_model("dens_escn_noise_head")
class ESCNNoiseHead(NoiseOutput, eSCNForceHead):
    """Second force head of eSCN, for the noise."""
