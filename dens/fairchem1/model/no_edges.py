"""Let EquiformerV2 of fairchem-core 1.10 take graphs without edges: isolated atoms.

Energies then come from the nodes alone, forces and noise are zero, and every parameter that a
graph with edges reaches has a gradient of zero. Only one of fairchem's modules cannot take it.
"""

from __future__ import annotations

from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding

from dens.ranks import zero_gradient

_stock_forward = SO2_Convolution.forward


def allow_no_edges() -> None:
    """Replace the forward method of fairchem's SO(2) convolution in this process, for good."""
    SO2_Convolution.forward = _forward


def _forward(self: SO2_Convolution, x: SO3_Embedding, x_edge):
    if len(x_edge):
        return _stock_forward(self, x, x_edge)
    # the sums are 0, and connect what the messages come from
    zero = x.embedding.sum() + x_edge.sum() + zero_gradient(self.parameters())
    rows = x.embedding.shape[1]
    out = SO3_Embedding(0, x.lmax_list.copy(), self.m_output_channels, x.device, x.dtype)
    out.set_embedding(zero.expand(0, rows, self.m_output_channels))
    out.set_lmax_mmax(self.lmax_list.copy(), self.mmax_list.copy())
    if self.extra_m0_output_channels is None:
        return out
    return out, zero.expand(0, self.extra_m0_output_channels)
