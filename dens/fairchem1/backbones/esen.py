"""eSEN (arXiv:2502.12147) with force encoding and noise head; forces direct or by gradient."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.esen.esen import Linear_Force_Head, eSEN_Backbone

from dens.fairchem1.backbones.attached import EncodesForces, NoiseOutput
from dens.fairchem1.model.graph import RadiusGraphs
from dens.ranks import zero_gradient


@registry.register_model("dens_esen_backbone")
class ESENBackbone(EncodesForces, eSEN_Backbone, RadiusGraphs):
    """eSEN that adds the encoded forces of corrupted atoms to the element embedding.

    With the head ``esen_mlp_efs_head`` forces are gradients of the energy with respect to the
    corrupted positions, the encoding held fixed; the noise head is direct all the same.

    Args:
        kwargs: settings of :class:`~dens.fairchem1.backbones.attached.EncodesForces`, and of
            fairchem's ``esen_backbone``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edge_degree_embedding.register_forward_pre_hook(self._add_encoding)

    def forward(self, data) -> dict[str, Any]:
        """Run fairchem's forward; a graph without edges has zero forces and zero gradients."""
        out = super().forward(data)
        if out["edge_index"].shape[1] == 0:  # fairchem leaves all layers out
            with torch.set_grad_enabled(torch.is_grad_enabled() or data.pos.requires_grad):
                zero = 0 * data.pos.sum() + zero_gradient(self.parameters())
                out["node_embedding"] = out["node_embedding"] + zero
        return out

    def _add_encoding(self, embedding, args):
        if self.encoded is None:
            return None
        x, *others = args
        return (x + self.encoded.to(x.dtype), *others)


@registry.register_model("dens_esen_noise_head")
class ESENNoiseHead(NoiseOutput, Linear_Force_Head):
    """Second vector head of eSEN, direct, for the noise."""
