"""Frames of edges and their Wigner matrices on a GPU: few kernels, and no wait of the host.

On a CPU they are fairchem's own, so that results stay the same to the last bit.
"""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.wigner import _Jd
from torch import Tensor, nn

# vectors made of a random one, of which one is far from parallel to an edge: components and signs
_COMPONENTS = [[0, 1, 2], [1, 0, 2], [0, 2, 1]]
_SIGNS = [[1, 1, 1], [-1, 1, 1], [1, -1, 1]]


class EdgeFrames(nn.Module):
    """Frames of edges and their Wigner matrices, equal to fairchem's up to rounding.

    Its tables, for all degrees up to ``lmax``, are not part of the state dict.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        rows = [(degree, m) for degree in range(lmax + 1) for m in range(degree, -degree - 1, -1)]
        orders = [m for _, m in rows]
        mirrored = [degree * (degree + 1) + m for degree, m in rows]
        buffers = {
            "components": torch.tensor(_COMPONENTS).flatten(),
            "signs": torch.tensor(_SIGNS, dtype=torch.float64).flatten(),
            "multiples": torch.arange(lmax + 1, dtype=torch.float64),
            "orders": torch.tensor(orders, dtype=torch.float64),
            "mirrored": torch.tensor(mirrored),
            "tilts": _tilts(lmax, torch.tensor(mirrored)),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def frames(self, vectors: Tensor) -> Tensor:
        """Make a frame for each edge, turned by a random angle about the edge.

        Args:
            vectors: (n_edges, 3), Å, none of them zero.

        Returns:
            (n_edges, 3, 3), rotations whose second row is the direction of the edge.
        """
        vectors = vectors.detach()
        edge = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        drawn = torch.rand_like(edge) - 0.5
        choices = drawn[:, self.components] * self.signs.to(drawn.dtype)
        choices = choices.view(-1, 3, 3)
        best = (choices * edge[:, None]).sum(2).abs().argmin(1)
        across = choices.gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0]
        first = torch.linalg.cross(edge, across)
        first = first / torch.linalg.vector_norm(first, dim=1, keepdim=True)
        return torch.stack([first, edge, torch.linalg.cross(first, edge)], dim=1)

    @torch.no_grad()
    def wigner(self, frames: Tensor) -> Tensor:
        r"""Compute the Wigner matrices of rotations for all degrees.

        .. math:: D = Z(\alpha)\, d(\beta)\, Z(\gamma), \qquad
            d(\beta) = \sum_k \cos(k \beta)\, C_k + \sin(k \beta)\, S_k

        with Z the rotation about the polar axis, which mixes the orders m and -m alone.

        Args:
            frames: (n_edges, 3, 3).

        Returns:
            (n_edges, (lmax + 1)^2, (lmax + 1)^2), one block for each degree.
        """
        x, z = frames[:, 0], frames[:, 2]
        alpha = torch.atan2(x[:, 1], z[:, 1])
        beta = torch.atan2(torch.hypot(x[:, 1], z[:, 1]), frames[:, 1, 1])
        turned = alpha.cos()[:, None] * x - alpha.sin()[:, None] * z
        gamma = torch.atan2(turned[:, 2], turned[:, 0])
        tilt = beta[:, None] * self.multiples.to(beta.dtype)
        waves, size = torch.cat([tilt.cos(), tilt.sin()], dim=1), len(self.orders)
        tilted, mirrored = (waves @ self.tilts.to(waves.dtype)).view(-1, 2, size, size).unbind(1)
        turns = torch.stack([alpha, gamma], dim=1)[:, :, None] * self.orders.to(beta.dtype)
        (cos_a, cos_c), (sin_a, sin_c) = turns.cos().unbind(1), turns.sin().unbind(1)
        right = tilted * cos_c[:, None] - mirrored * sin_c[:, None]
        return right * cos_a[:, :, None] + right[:, self.mirrored] * sin_a[:, :, None]


def _tilts(lmax: int, mirrored: Tensor) -> Tensor:
    """Tabulate C_k, then S_k: (2 (lmax + 1), 2 * rows * rows), also with columns m and -m swapped.

    fairchem writes d = J Z(beta) J, with Z(beta) cos(m beta) on the diagonal and sin(m beta) beside
    it, in the column of -m.
    """
    size = (lmax + 1) ** 2
    tilts = torch.zeros(2, lmax + 1, size, size, dtype=torch.float64)
    for degree in range(lmax + 1):
        block, width = slice(degree**2, (degree + 1) ** 2), 2 * degree + 1
        j = _Jd[degree].double()
        for i in range(width):
            m = degree - i
            sign = (m > 0) - (m < 0)
            tilts[0, abs(m), block, block] += torch.outer(j[:, i], j[i])
            tilts[1, abs(m), block, block] += sign * torch.outer(j[:, i], j[width - 1 - i])
    both = torch.stack([tilts, tilts[..., mirrored]], dim=2)
    return both.view(2 * (lmax + 1), -1)
