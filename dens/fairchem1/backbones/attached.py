"""Force encoding and noise head for a backbone of fairchem-core 1.10, by mixin and hook.

A backbone puts :class:`EncodesForces` before fairchem's class and adds ``self.encoded`` to its
first node embedding in a hook; its noise head puts :class:`NoiseOutput` before fairchem's force
head. Clean batches (see :func:`dens.denoising.corruption.denoising_fields`), so every evaluation,
have no encoding and no noise: a backbone then computes what fairchem's does with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from fairchem.core.common import gp_utils
from torch import Tensor, nn

from dens.denoising.corruption import denoising_fields
from dens.denoising.force_encoding import ForceEncoding
from dens.settings import ConfigError


class EncodesForces(nn.Module):
    """Mixin that encodes the forces of corrupted atoms; the backbone's hook adds the encoding.

    Args:
        force_encoding: whether forces are encoded (false for the ablation).
        sigma_encoding: whether the noise level is encoded too: true for corrupted atoms;
            ``structure`` for all atoms of a corrupted structure, as in the authors' models.
        kwargs: settings of fairchem's backbone.

    Raises:
        ConfigError: sigma encoding without force encoding; several resolutions (``lmax_list``
            with more than one entry); ranks that share a graph, where the backbone cannot.
    """

    encodes_forces = True
    shares_graphs = False  # whether fairchem's backbone can split a graph over ranks
    weight_init = "uniform"  # of the encoding; EquiformerV2 has a setting of this name
    encoded: Tensor | None  # (n_atoms, (lmax + 1)^2, channels) | of the present corrupted batch

    def __init__(
        self, *, force_encoding: bool = True, sigma_encoding: bool | str = False, **kwargs: Any
    ) -> None:
        _check(type(self), force_encoding, sigma_encoding)
        super().__init__(**kwargs)
        self.sigma_encoding = sigma_encoding
        self.encoded = None
        self.force_encoding = None
        lmax = self._degree()
        if force_encoding:
            self.force_encoding = ForceEncoding(
                lmax, self.sphere_channels, bool(sigma_encoding), self.weight_init
            )

    def _degree(self) -> int:
        """Return lmax, a setting of its own or the only entry of ``lmax_list``."""
        if not hasattr(self, "lmax_list"):
            return self.lmax
        if len(self.lmax_list) != 1:
            raise ConfigError(
                "lmax_list must have one entry for DeNS, got "
                f"{self.lmax_list} (model.backbone.lmax_list)"
            )
        return self.lmax_list[0]

    def forward(self, data) -> dict[str, Any]:
        """Run fairchem's forward, with the forces of ``data`` encoded if it is corrupted."""
        fields = denoising_fields(data)
        if fields is not None and self.force_encoding is not None:
            with torch.autocast(data.pos.device.type, enabled=False):
                sigma = fields.sigma[data.batch]
                if self.sigma_encoding != "structure":
                    sigma = torch.where(fields.noise_mask, sigma, 0)
                self.encoded = self.force_encoding(fields.noise_forces, sigma)
        try:
            return super().forward(data)
        finally:
            self.encoded = None


def _check(backbone: type, force_encoding: bool, sigma_encoding: bool | str) -> None:
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
    if gp_utils.initialized():
        check_shares_graphs(backbone)


def check_shares_graphs(backbone: type) -> None:
    """Refuse a class of :class:`EncodesForces` whose graphs cannot be split over ranks.

    Raises:
        ConfigError: names the class.
    """
    if not getattr(backbone, "shares_graphs", True):
        raise ConfigError(
            f"--gp-gpus needs EquiformerV2: fairchem-core 1.10 does not split the graphs of "
            f"dens.{backbone.__name__} over ranks (model.backbone.model)"
        )


class NoiseOutput(nn.Module):
    """Mixin that makes a force head predict the noise in units of s_N; skipped if none is there."""

    predicts_noise = True

    def forward(self, data, emb) -> dict[str, Tensor]:
        """Predict ``{"noise": (n_atoms, 3)}`` for a corrupted batch; nothing for a clean one."""
        if denoising_fields(data) is None:
            return {}
        return {"noise": super().forward(data, emb)["forces"]}


def check_gradient_scales(modules: Iterable[nn.Module], normalizers: Mapping[str, Any]) -> None:
    """Refuse different normalisers of an energy and of forces, or a stress, that are its gradient.

    Args:
        modules: of the model.
        normalizers: fairchem's, by the names of targets.

    Raises:
        ConfigError: names both standard deviations.
    """
    modules = [module for module in modules if not getattr(module, "direct_forces", True)]
    if not modules:
        return

    def scale(name: str) -> float:
        return float(normalizers[name].rmsd) if name in normalizers else 1.0

    stress = any(getattr(module, "regress_stress", False) for module in modules)
    for name in ("forces", "stress") if stress else ("forces",):
        if not math.isclose(scale("energy"), scale(name), rel_tol=1e-6):
            raise ConfigError(
                f"the model computes {name} as a gradient of the energy, so both must have the "
                f"same stdev in their normalizers, got {scale('energy'):g} for energy and "
                f"{scale(name):g} for {name} (dataset.train.transforms.normalizer.{name}.stdev)"
            )
