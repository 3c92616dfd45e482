"""EquiformerV2's layer norm in the same few kernels for any number of degrees, on a GPU."""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics,
)
from torch import Tensor, nn

from dens import transfer


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

    def add_buffers(self) -> None:
        """Register the degree of each row beyond the first, less one, outside the state dict."""
        degrees = [degree for degree in range(self.lmax) for _ in range(2 * degree + 3)]
        self.register_buffer("degrees", torch.tensor(degrees), persistent=False)

    @torch.autocast("cuda", enabled=False)
    def forward(self, node_input: Tensor) -> Tensor:
        if transfer.is_host(node_input.device) or self.lmax == 0:
            return super().forward(node_input)
        rest = node_input[:, 1:]
        squared = (rest.square() * self.balance_degree_weight).sum((1, 2), keepdim=True)
        scale = (squared / self.num_channels + self.eps).rsqrt()
        weight = self.affine_weight.index_select(0, self.degrees)
        return torch.cat([self.norm_l0(node_input[:, :1]), rest * scale * weight], dim=1)
