"""EquiformerV2 with a force encoding and a noise head, by subclass and hook.

For clean batches (see :func:`dens.denoising.corruption.denoising_fields`), so in every evaluation,
the results equal those of fairchem's own classes with the same weights: bit for bit with
``fast: false``, up to rounding on the fast path.
"""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2 import equiformer_v2
from torch import Tensor

from dens import transfer
from dens.denoising.corruption import denoising_fields
from dens.denoising.force_encoding import ForceEncoding
from dens.fairchem1.model.fast import ScalarHead, VectorHead, speed_up
from dens.fairchem1.model.graph import RadiusGraphs
from dens.fairchem1.model.no_edges import allow_no_edges
from dens.settings import ConfigError


@registry.register_model("dens_equiformer_v2_backbone")
class EquiformerV2Backbone(RadiusGraphs, equiformer_v2.EquiformerV2Backbone):
    """EquiformerV2 that adds the encoded forces of corrupted atoms to its first node embedding.

    With ``use_pbc: false``, and always on the fast path, the graph comes from
    :mod:`dens.graphs.radius` (see :mod:`dens.fairchem1.model.graph`).

    Args:
        force_encoding: whether forces are encoded (false for the ablation).
        sigma_encoding: whether the noise level is encoded too: true for corrupted atoms;
            ``structure`` for all atoms of a corrupted structure, as in the authors' models.
        fast: whether to take the fast path (:mod:`dens.fairchem1.model.fast`) if it covers the
            other settings; the heads of this module follow.
        kwargs: settings of fairchem's ``equiformer_v2_backbone``.

    Raises:
        ConfigError: several resolutions (``lmax_list`` with more than one entry); sigma encoding
            without force encoding.
    """

    encodes_forces = True

    def __init__(
        self,
        *,
        force_encoding: bool = True,
        sigma_encoding: bool | str = False,
        fast: bool = True,
        **kwargs: Any,
    ) -> None:
        allow_no_edges()
        super().__init__(**kwargs)
        if self.num_resolutions != 1:
            raise ConfigError(
                "lmax_list must have one entry for DeNS, got "
                f"{self.lmax_list} (model.backbone.lmax_list)"
            )
        if sigma_encoding and not force_encoding:
            raise ConfigError(
                f"sigma_encoding needs force_encoding, got sigma_encoding: {sigma_encoding} and "
                "force_encoding: false (model.backbone.sigma_encoding)"
            )
        if sigma_encoding not in (True, False, "structure"):
            raise ConfigError(
                f"sigma_encoding must be true, false or 'structure', got {sigma_encoding!r} "
                "(model.backbone.sigma_encoding)"
            )
        self.sigma_encoding = sigma_encoding
        self.force_encoding = None
        if force_encoding:
            self.force_encoding = ForceEncoding(
                self.lmax_list[0], self.sphere_channels, bool(sigma_encoding), self.weight_init
            )
        self.fast = fast and speed_up(self)
        self._encoded: Tensor | None = None  # set during forward, read by the hook
        self.edge_degree_embedding.register_forward_hook(self._add_encoding)

    def forward(self, data) -> dict[str, Any]:
        """Run fairchem's forward, with the forces of ``data`` encoded if it is corrupted."""
        fields = denoising_fields(data)
        if fields is not None and self.force_encoding is not None:
            with torch.autocast(data.pos.device.type, enabled=False):
                sigma = fields.sigma[data.batch]
                if self.sigma_encoding != "structure":
                    sigma = torch.where(fields.noise_mask, sigma, 0)
                self._encoded = self.force_encoding(fields.noise_forces, sigma)
        try:
            return super().forward(data)
        finally:
            self._encoded = None

    def _init_edge_rot_mat(self, data, edge_index, edge_distance_vec):
        if len(edge_distance_vec) == 0:  # fairchem looks for the shortest edge
            return edge_distance_vec.new_zeros(0, 3, 3)
        if self.fast and not transfer.is_host(edge_distance_vec.device):
            return self.SO3_rotation[0].edges.frames(edge_distance_vec)
        return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)

    def _add_encoding(self, module, args, output):
        # the edge-degree embedding is the last term added to the first node embedding; under graph
        # parallelism it holds the atoms of this rank only
        if self._encoded is not None:
            num_nodes, node_offset = args[3], args[4]
            encoded = self._encoded.narrow(0, node_offset, num_nodes)
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
