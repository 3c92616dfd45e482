"""Encoding of the original structure's forces as equivariant node features."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from dens import transfer


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
        self.harmonics = _FewKernels(lmax)

    def forward(self, forces: Tensor, sigma: Tensor) -> Tensor:
        """Encode forces.

        Args:
            forces: (n_atoms, 3), eV/Å, zero for atoms without encoding.
            sigma: (n_atoms,), Å, zero for atoms without encoding; used with ``sigma_encoding``.

        Returns:
            (n_atoms, (lmax + 1)^2, channels).
        """
        if transfer.is_host(forces.device):
            directions = o3.spherical_harmonics(
                self.degrees, forces, normalize=True, normalization="component"
            )
        else:
            directions = self.harmonics(forces)
        norms = torch.linalg.vector_norm(forces, dim=-1, keepdim=True) / math.sqrt(3)
        encoding = (norms * directions)[:, :, None] * self.weight[self.degree_of_row, :, 0]
        if self.sigma_weight is not None:
            scalars = encoding[:, :1] + sigma[:, None, None] * self.sigma_weight
            encoding = torch.cat([scalars, encoding[:, 1:]], dim=1)
        return encoding

    def __repr__(self) -> str:
        sigma = "" if self.sigma_weight is None else " + 1x0e"
        return f"ForceEncoding(1x1o{sigma} -> {self.irreps_out})"


class _FewKernels(nn.Module):
    r"""Spherical harmonics of e3nn in a dozen kernels, instead of 100 (lmax = 4) or 300 (lmax = 6).

    .. math:: Y_{lm} = \cos(m \alpha)\, \Theta_{lm}(\beta), \qquad
        Y_{l,-m} = \sin(m \alpha)\, \Theta_{lm}(\beta)

    with the angles of a direction as in e3nn and m >= 0; each Theta is a sum of cosines or sines of
    multiples of beta.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        orders = [m for degree in range(lmax + 1) for m in range(-degree, degree + 1)]
        m = torch.tensor(orders, dtype=torch.float64)
        multiples = torch.arange(lmax + 1, dtype=torch.float64)
        beta = (torch.arange(4 * lmax + 4, dtype=torch.float64) + 0.5) * math.pi / (4 * lmax + 4)
        meridian = torch.stack([0 * beta, beta.cos(), beta.sin()], dim=1)
        values = o3.spherical_harmonics(list(range(lmax + 1)), meridian, True, "component")
        positive = [n + 2 * max(-order, 0) for n, order in enumerate(orders)]
        odd = m.abs() % 2 == 1
        waves = beta[:, None] * multiples
        fits = [torch.linalg.pinv(w) @ values[:, positive] for w in (waves.cos(), waves.sin())]
        table = torch.cat([torch.where(odd, 0, fits[0]), torch.where(odd, fits[1], 0)])
        phase = (m < 0).double() * (math.pi / 2)
        tables = {"multiples": multiples, "table": table, "orders": m.abs(), "phase": phase}
        for name, value in tables.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute the harmonics of the directions of ``vectors``: (n, 3) -> (n, (lmax + 1)^2)."""
        multiples, table, orders, phase = (b.to(vectors.dtype) for b in self.buffers())
        x, y, z = vectors.unbind(1)
        alpha, beta = torch.atan2(x, z), torch.atan2(torch.hypot(x, z), y)
        waves = beta[:, None] * multiples
        waves = torch.cat([waves.cos(), waves.sin()], dim=1)
        # no matrix product, which TF32 would round
        of_beta = (waves[:, :, None] * table).sum(1)
        return (alpha[:, None] * orders - phase).cos() * of_beta


def _init(parameter: nn.Parameter, weight_init: str) -> None:
    if weight_init == "uniform":
        nn.init.uniform_(parameter, -1, 1)
    elif weight_init == "normal":
        nn.init.normal_(parameter)
    else:
        raise ValueError(f"weight_init must be 'uniform' or 'normal', got {weight_init!r}")
