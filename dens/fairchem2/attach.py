"""Attach the force encoding and the noise head to a stock model of fairchem-core 2.

The model's config stays stock. What is attached has names of its own, :data:`ADDED`, by which
checkpoints for inference leave it out. Without the fields of a corrupted batch the model computes
in evaluation what it did before, at the same cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.models.uma.escn_md import Linear_Force_Head
from torch import Tensor, nn

from dens.denoising.corruption import denoising_fields
from dens.denoising.force_encoding import ForceEncoding
from dens.ranks import zero_gradient
from dens.settings import ConfigError

# Name of the noise's head, task and label. fairchem takes an atom's label as one row only where the
# name has "forces" in it; ``noise_forces`` is the field with the forces to encode.
NOISE = "dens_noise_forces"
ADDED = ("backbone.force_encoding.", f"output_heads.{NOISE}.")

_NEEDS = ("edge_degree_embedding", "lmax", "sphere_channels")
_PARAMETERS = "dens_parameters"  # of a training batch: those of the encoding, for the head


class NodeForceEncoding(ForceEncoding):
    """Force encoding that adds itself to the node features of a backbone, through its hooks.

    The hooks are bound methods: a copy of the model, such as its moving average, has its own.
    """

    _encoded: Tensor | None = None  # (n_atoms, (lmax + 1)^2, channels) | of the present batch
    _data: Any = None  # the present batch

    def attach_to(self, backbone: nn.Module) -> None:
        """Become ``backbone.force_encoding`` and register the hooks."""
        backbone.force_encoding = self
        backbone.register_forward_pre_hook(self.before_backbone)
        backbone.register_forward_hook(self.after_backbone, always_call=True)
        backbone.edge_degree_embedding.register_forward_pre_hook(self.add_to_nodes)

    def before_backbone(self, backbone: nn.Module, args: tuple) -> None:
        """Encode the forces of a corrupted batch."""
        self._data, self._encoded = args[0], None
        if backbone.training:
            # past the batch's own setattr, which takes it for a field
            object.__setattr__(self._data, _PARAMETERS, list(self.parameters()))
        fields = denoising_fields(self._data)
        if fields is not None:
            with torch.autocast(fields.noise.device.type, enabled=False):
                sigma = torch.where(fields.noise_mask, fields.sigma[self._data["batch"]], 0)
                self._encoded = self(fields.noise_forces, sigma)

    def after_backbone(self, backbone: nn.Module, args: tuple, output: Any) -> None:
        """Forget the batch."""
        self._encoded = self._data = None

    def add_to_nodes(self, embedding: nn.Module, args: tuple) -> tuple | None:
        """Add the encoding to the node features, the first of the layer's arguments."""
        if self._encoded is None:
            return None
        encoded = self._encoded
        if gp_utils.initialized():
            encoded = encoded[self._own_atoms(len(encoded), encoded.device)]
        return (args[0] + encoded.to(args[0].dtype), *args[1:])

    def _own_atoms(self, n_atoms: int, device: torch.device) -> Tensor:
        """Select this rank's atoms of a graph that ranks share, as the backbone does."""
        context = self._data.get("gp_ctx", None)
        if context is not None:
            return (context.rank_assignments == context.rank).nonzero(as_tuple=True)[0]
        parts = torch.arange(n_atoms, device=device).tensor_split(gp_utils.get_gp_world_size())
        return parts[gp_utils.get_gp_rank()]


class NoiseHead(Linear_Force_Head):
    """fairchem's direct vector head, for the noise divided by s_N.

    In training a batch without a corrupted atom gives zeros, with a zero gradient for all that was
    attached; in evaluation it gives nothing.

    Args:
        pass_through: whether the model merges the outputs of its heads.
    """

    def __init__(self, backbone: nn.Module, pass_through: bool) -> None:
        super().__init__(backbone)
        self.pass_through = pass_through

    def forward(self, data: Any, emb: dict[str, Tensor]) -> dict[str, Any]:
        if denoising_fields(data) is not None:
            noise = super().forward(data, emb)["forces"]
        elif self.training:
            attached = [*self.parameters(), *getattr(data, _PARAMETERS)]
            noise = torch.zeros_like(data["pos"].detach()) + zero_gradient(attached)
        else:
            return {}
        return {NOISE: {"noise": noise}} if self.pass_through else {"noise": noise}


def attach_dens(
    model: nn.Module, *, sigma_encoding: bool = False, weight_init: str = "uniform"
) -> None:
    """Add force encoding and noise head to a HydraModel, in place.

    Args:
        model: with a backbone of eSCN-MD's kind: eSEN, UMA.
        sigma_encoding, weight_init: see :class:`~dens.denoising.force_encoding.ForceEncoding`.

    Raises:
        ConfigError: the backbone has no node features to which the forces can be added.
    """
    backbone, heads = getattr(model, "backbone", None), getattr(model, "output_heads", None)
    if backbone is None or not isinstance(heads, nn.ModuleDict):
        raise ConfigError(
            "DeNS needs a HydraModel with backbone and heads, got "
            f"{type(model).__name__} (runner.train_eval_unit.model)"
        )
    missing = [name for name in _NEEDS if not hasattr(backbone, name)]
    if missing:
        raise ConfigError(
            "DeNS needs a backbone of eSCN-MD's kind (eSEN, UMA), got "
            f"{type(backbone).__name__}, which has no {' and no '.join(missing)} "
            "(runner.train_eval_unit.model.backbone)"
        )
    encoding = NodeForceEncoding(
        backbone.lmax, backbone.sphere_channels, sigma_encoding, weight_init
    )
    encoding.attach_to(backbone)
    heads[NOISE] = NoiseHead(backbone, model.pass_through_head_outputs)


def whole_graph(batch: Any) -> None:
    """Give a batch its atoms back, of which a model on ranks that share a graph leaves a part."""
    if "batch_full" in batch:
        batch.batch, batch.atomic_numbers = batch.batch_full, batch.atomic_numbers_full


def is_added(name: str) -> bool:
    """Tell whether an entry of a state dict was attached, under any wrapper of the model."""
    return any(f".{added}" in f".{name}" for added in ADDED)


def without_added(state: Mapping[str, Any]) -> dict[str, Any]:
    """Leave what was attached out of a state dict."""
    return {name: value for name, value in state.items() if not is_added(name)}
