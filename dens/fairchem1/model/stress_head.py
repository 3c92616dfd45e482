"""Equivariant stress head: fairchem's rank-2 head with a linear map of its degree-2 part."""

from __future__ import annotations

import torch
from e3nn import o3
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.heads.rank2 import Rank2SymmetricTensorHead
from torch import Tensor, nn

from dens.fairchem1.model.fast.layers import all_atoms


@registry.register_model("dens_stress_head")
class StressHead(Rank2SymmetricTensorHead):
    r"""Head for the stress in two parts, ``1x0e`` (isotropic) and ``1x2e`` (anisotropic).

    .. math:: s_0 = \frac1n \sum_i \mathrm{MLP}\Bigl(\overline{h_{ij}}\Bigr), \qquad
        s_2 = \frac1n \sum_i \overline{(w \cdot h_{ij}) Y_2(\hat r_{ij})}, \qquad
        h_{ij} = \mathrm{LayerNorm}\bigl(\langle x_i, Y(r_{ij})\rangle
            \oplus \langle x_j, Y(r_{ij})\rangle\bigr)

    with the means over the neighbours j of atom i, and x the node embedding. fairchem's own
    ``rank2_symmetric_head`` has a SiLU and biases on the components of the degree-2 part, so its
    stress does not turn with the structure. This one does. It also sees the degree 0 of x from the
    start, without which all cubic crystals look alike up to lmax 3: the normalisation of Y removes
    it, and fairchem's bias starts at 0. Its weights are also those of a head of fairchem's, see
    :func:`as_stock`.

    Args:
        backbone: of EquiformerV2.
        output_name: the outputs are ``<output_name>_isotropic``, (n_structures, 1), and
            ``<output_name>_anisotropic``, (n_structures, 5): parts of a target with a
            ``decomposition``, from which fairchem's trainer composes the (n_structures, 9) in
            eV/Å^3.
    """

    def __init__(self, backbone, output_name: str = "stress") -> None:
        super().__init__(backbone, output_name, decompose=True, use_source_target_embedding=True)
        channels = self.block.emb_size
        self.block.irrep2_MLP = nn.Linear(channels, 1, bias=False)
        for name, bias in self.sphharm_norm.named_parameters():
            if name.endswith("bias"):  # of degree 0, in all of fairchem's normalisations
                nn.init.ones_(bias)
        nn.init.uniform_(self.block.irrep2_MLP.weight, -(channels**-0.5), channels**-0.5)

    def forward(self, data, emb) -> dict[str, Tensor]:
        x, graph = emb["node_embedding"], emb["graph"]
        features = self._edge_features(x, graph)
        target, n_atoms = graph.edge_index[1] - graph.node_offset, len(x.embedding)
        sphere = o3.spherical_harmonics(2, graph.edge_distance_vec, True).detach()
        isotropic = self.block.scalar_MLP(_mean(features, target, n_atoms))
        anisotropic = _mean(self.block.irrep2_MLP(features) * sphere, target, n_atoms)
        of_atoms = torch.cat([isotropic, anisotropic], dim=1)
        if gp_utils.initialized():
            of_atoms = gp_utils.gather_from_model_parallel_region(of_atoms, dim=0)
        parts = _mean(of_atoms, data.batch, len(data.natoms))
        return {
            f"{self.output_name}_isotropic": parts[:, :1],
            f"{self.output_name}_anisotropic": parts[:, 1:],
        }

    def _edge_features(self, x, graph) -> Tensor:
        """Project the embeddings of both ends of each edge on its direction: (n_edges, 2 c)."""
        degrees = list(range(x.lmax_list[-1] + 1))
        harmonics = o3.spherical_harmonics(degrees, graph.edge_distance_vec, False).detach()
        harmonics = self.sphharm_norm(harmonics[:, :, None])
        embedding = all_atoms(x)
        ends = [(embedding[end] * harmonics).sum(dim=1) for end in graph.edge_index]
        return self.xedge_layer_norm(torch.cat(ends, dim=1))


def _mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Average the rows that share an index: (n, k) -> (size, k), zero where there are none."""
    count = torch.bincount(index, minlength=size).clamp(min=1)
    return values.new_zeros(size, values.shape[1]).index_add(0, index, values) / count[:, None]


def as_stock(weights: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    r"""Rewrite the weights of a :class:`StressHead` for fairchem's ``rank2_symmetric_head``.

    Its two layers with a SiLU between them can be linear:
    :math:`\mathrm{SiLU}(a) - \mathrm{SiLU}(-a) = a`.

    Args:
        weights: of a whole model.
        head: the name of the head.
    """
    prefix = f"output_heads.{head}.block.irrep2_MLP."
    weights = dict(weights)
    row = weights.pop(f"{prefix}weight")
    channels = row.shape[1]
    first, last = row.new_zeros(channels, channels), row.new_zeros(1, channels)
    first[:2], last[0, :2] = torch.cat([row, -row]), torch.tensor([1.0, -1.0])
    stock = {
        "0.weight": first,
        "0.bias": row.new_zeros(channels),
        "2.weight": last,
        "2.bias": row.new_zeros(1),
    }
    return weights | {prefix + name: value for name, value in stock.items()}
