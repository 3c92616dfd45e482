"""EquiformerV2's layer norm in the same few kernels for any number of degrees, on a GPU."""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics,
)
from torch import Tensor, nn

from dens import transfer
from dens.fast.backends import backend_of
from dens.fast.ops import equivariant_layer_norm


class SphericalLayerNorm(EquivariantLayerNormArraySphericalHarmonics):
    """fairchem's layer norm, all degrees at once; on a CPU it is fairchem's to the last bit."""

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Return whether a module is a norm of fairchem's whose class may become this one."""
        return (
            type(module) is EquivariantLayerNormArraySphericalHarmonics
            and module.affine
            and module.std_balance_degrees
            and module.normalization == "component"
        )

    @torch.autocast("cuda", enabled=False)
    def forward(self, node_input: Tensor) -> Tensor:
        device = node_input.device
        if (transfer.is_host(device) and backend_of(device) == "eager") or self.lmax == 0:
            return super().forward(node_input)
        weights = self.norm_l0.weight, self.norm_l0.bias, self.affine_weight
        return equivariant_layer_norm(node_input, *weights, self.balance_degree_weight, self.eps)
