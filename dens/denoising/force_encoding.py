"""Encoding of the original structure's forces as equivariant node features."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn


class ForceEncoding(nn.Module):
    r"""Layer that encodes forces as features of degree 0 to lmax (arXiv:2403.09549, section 3.2).

    .. math:: x_i = W\Big(\tfrac{|f_i|}{\sqrt 3}\, Y(f_i)\Big) \; [\; + \; w\,\sigma_i
        \text{ on } l = 0\;]

    with Y the real spherical harmonics in e3nn's `component` normalisation, so that the degree-1
    part has the norm of the force, and W one matrix (1 -> channels) for each degree, without bias:
    f = 0 gives exactly zero. Irreps: ``1x1o -> (channels)x0e + (channels)x1o + ...``, laid out as
    (n_atoms, (lmax + 1)^2, channels).

    Args:
        lmax: largest degree.
        channels: number of features of each degree.
        sigma_encoding: whether to add the noise level to degree 0 through a linear layer.
        weight_init: ``'uniform'`` in [-1, 1] or ``'normal'`` with unit variance.

    Raises:
        ValueError: unknown ``weight_init``.

    >>> ForceEncoding(lmax=2, channels=8)
    ForceEncoding(1x1o -> 8x0e+8x1o+8x2e)
    """

    def __init__(
        self, lmax: int, channels: int, sigma_encoding: bool = False, weight_init: str = "uniform"
    ) -> None:
        super().__init__()
        self.degrees = list(range(lmax + 1))
        self.irreps_out = o3.Irreps(
            [(channels, (degree, (-1) ** degree)) for degree in self.degrees]
        )
        # the shape of fairchem's SO3_LinearV2 weight: (degree, out, in)
        self.weight = nn.Parameter(torch.empty(lmax + 1, channels, 1))
        self.sigma_weight = nn.Parameter(torch.empty(channels)) if sigma_encoding else None
        for parameter in self.parameters():
            _init(parameter, weight_init)
        degree_of_row = [degree for degree in self.degrees for _ in range(2 * degree + 1)]
        self.register_buffer("degree_of_row", torch.tensor(degree_of_row), persistent=False)

    def forward(self, forces: Tensor, sigma: Tensor) -> Tensor:
        """Encode forces.

        Args:
            forces: (n_atoms, 3), eV/Å, zero for atoms without encoding.
            sigma: (n_atoms,), Å, zero for atoms without encoding; used with ``sigma_encoding``.

        Returns:
            (n_atoms, (lmax + 1)^2, channels).
        """
        directions = o3.spherical_harmonics(
            self.degrees, forces, normalize=True, normalization="component"
        )
        norms = torch.linalg.vector_norm(forces, dim=-1, keepdim=True) / math.sqrt(3)
        encoding = (norms * directions)[:, :, None] * self.weight[self.degree_of_row, :, 0]
        if self.sigma_weight is not None:
            scalars = encoding[:, :1] + sigma[:, None, None] * self.sigma_weight
            encoding = torch.cat([scalars, encoding[:, 1:]], dim=1)
        return encoding

    def __repr__(self) -> str:
        sigma = "" if self.sigma_weight is None else " + 1x0e"
        return f"ForceEncoding(1x1o{sigma} -> {self.irreps_out})"


def _init(parameter: nn.Parameter, weight_init: str) -> None:
    if weight_init == "uniform":
        nn.init.uniform_(parameter, -1, 1)
    elif weight_init == "normal":
        nn.init.normal_(parameter)
    else:
        raise ValueError(f"weight_init must be 'uniform' or 'normal', got {weight_init!r}")
