"""Heads of MoreRed on EquiformerV2: the diffusion time of a structure, and its noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import Tensor, nn

from dens.fairchem1.model.fast.output_heads import VectorHead
from dens.relax.objective import mean_over_free
from dens.relax.structures import centre
from dens.settings import ConfigError


@registry.register_model("dens_time_head")
class TimeHead(nn.Module, HeadInterface):
    """Predict the diffusion time tau from the l = 0 features of each atom: the network of AS.

    A multilayer perceptron of C, C and C / 2 channels; the time of a structure is the mean over its
    free atoms (arXiv:2404.10935).
    """

    @classmethod
    def outputs_with(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the outputs of a head with these settings of a config."""
        return ("time",)

    def __init__(self, backbone) -> None:
        super().__init__()
        channels = backbone.sphere_channels
        self.time = nn.Sequential(
            nn.Linear(channels, channels),
            nn.SiLU(),
            nn.Linear(channels, channels // 2),
            nn.SiLU(),
            nn.Linear(channels // 2, 1),
        )

    def forward(self, data, emb) -> dict[str, Tensor]:
        """Predict ``{"time": (n_atoms, 1)}``."""
        time = self.time(emb["node_embedding"].embedding[:, 0])
        if gp_utils.initialized():
            time = gp_utils.gather_from_model_parallel_region(time, dim=0)
        return {"time": time}


@registry.register_model("dens_morered_head")
class MoreRedHead(TimeHead):
    """Predict how much noise a structure has, and which: the network of MoreRed JT.

    The structure's time enters the l = 0 features, of which a vector head then predicts the noise,
    in units of its level: zero for fixed atoms, without a mean where nothing is fixed.

    Args:
        time: ``predicted`` by this head (JT), or ``given`` in ``data.time`` (the noise network of
            AS and ITP, beside a :class:`TimeHead` of its own).

    Raises:
        ConfigError: another value of ``time``; in the forward pass: a time that is not given.
    """

    @classmethod
    def outputs_with(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return ("noise",) if settings.get("time") == "given" else ("noise", "time")

    def __init__(self, backbone, time: str = "predicted") -> None:
        super().__init__(backbone)
        if time not in ("predicted", "given"):
            raise ConfigError(
                f"time must be 'predicted' or 'given', got {time!r} (model.heads.*.time)"
            )
        self.is_told = time == "given"
        if self.is_told:
            del self.time
        channels = backbone.sphere_channels
        self.embed = nn.Sequential(nn.Linear(1, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.noise = VectorHead(backbone, "noise")

    def forward(self, data, emb) -> dict[str, Tensor]:
        """Predict ``{"noise": (n_atoms, 3)}``, and ``time``, (n_atoms, 1), unless it is given."""
        out = {} if self.is_told else super().forward(data, emb)
        told = getattr(data, "told_time", None)  # by a sampler that counts the level down
        if told is None:
            told = out["time"] if out else getattr(data, "time", None)
        if told is None:
            raise ConfigError(
                "this network is told the noise level (time: given) and cannot find it: use it in "
                "dens relax with --time-checkpoint"
            )
        time = mean_over_free(told.view(-1), data)
        scalars = self.embed(time[:, None])[data.batch]
        noise = self.noise(data, {**emb, "node_embedding": _add_scalars(emb, scalars)})["noise"]
        free = (data.fixed == 0)[:, None]
        noise = torch.where(free, noise, 0)
        return {"noise": centre(noise, data.batch, data.natoms, data.fixed), **out}


def _add_scalars(emb, values: Tensor):
    """Copy the node embedding with (n_atoms, C) added to l = 0; other heads read the original."""
    x = emb["node_embedding"]
    values = values.narrow(0, emb["graph"].node_offset, len(x.embedding))
    changed = x.clone()
    scalars = x.embedding[:, :1] + values[:, None].to(x.embedding.dtype)
    changed.set_embedding(torch.cat([scalars, x.embedding[:, 1:]], dim=1))
    return changed
