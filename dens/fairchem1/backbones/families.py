"""Table of the backbones: their classes, the names in their state dicts, sizes and settings.

Checkpoints, config checks and calculators read all that depends on the backbone from here. A new
backbone needs a :class:`Family` in :data:`FAMILIES`; see docs/backbones.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fairchem.core.models.equiformer_v2 import equiformer_v2
from fairchem.core.models.escn.escn import eSCNBackbone
from fairchem.core.models.esen.esen import eSEN_Backbone
from torch import Tensor

from dens.fairchem1.backbones import sizes


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LISTS = {"lmax": "lmax_list", "mmax": "mmax_list"}


@dataclass(frozen=True, eq=False)
class Family:
    """Names, sizes and settings of one backbone.

    Attributes:
        title: its name in messages.
        stock: fairchem's class.
        classes: for the backbone and each head, its name in dens, fairchem's name (``-``: none) and
            further names of equivalent classes; the backbone stands first.
        heads: the classes of energy, forces and noise, for a model that lists no heads.
        flat: names of the whole model, of configs that do not list a backbone and heads.
        mark: start of names in every state dict of this family, and of no other.
        describe: sizes of a model, read off the shapes of its weights.
        fixed: settings that change shapes; a checkpoint must fit them.
        of_training: settings that are no part of a trained function.
        defaults: values in force where a setting is null or where fairchem's class has none.
        keys: keys in a config of sizes that have other names there.
        last_layer: ends of the names of a force head's last, linear layer.
        fast: whether dens has a fast path for it.
    """

    title: str
    stock: type
    classes: str
    heads: Mapping[str, str]
    flat: tuple[str, ...]
    mark: str
    describe: Callable[[Mapping[str, Tensor]], dict[str, int]]
    fixed: frozenset[str]
    of_training: frozenset[str]
    last_layer: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    fast: bool = False

    @property
    def rows(self) -> list[list[str]]:
        """The table ``classes``: a list of names for each class."""
        return [row.split() for row in self.classes.strip().splitlines()]

    @property
    def backbone(self) -> str:
        """The name of the backbone's class in dens."""
        return self.rows[0][0]

    @property
    def noise_head(self) -> str:
        """The name of the class of its noise head."""
        return self.heads["noise"]

    @property
    def head_names(self) -> set[str]:
        """All names of heads that fit this backbone and no other."""
        return {name for row in self.rows[1:] for name in row} - {"-"} | {*self.heads.values()}

    @cached_property
    def stock_defaults(self) -> dict[str, Any]:
        """The settings of fairchem's class, with their defaults."""
        parameters = inspect.signature(self.stock.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}


EQUIFORMER_V2 = Family(
    title="EquiformerV2",
    stock=equiformer_v2.EquiformerV2Backbone,
    classes="""
dens.EquiformerV2Backbone equiformer_v2_backbone dens_equiformer_v2_backbone
dens.EnergyHead equiformerV2_scalar_head equiformer_v2_energy_head dens_energy_head
dens.ForceHead equiformerV2_vector_head equiformer_v2_force_head dens_force_head
dens.NoiseHead - dens_noise_head
dens.StressHead - dens_stress_head
""",
    heads={"energy": "dens.EnergyHead", "forces": "dens.ForceHead", "noise": "dens.NoiseHead"},
    flat=("dens.EquiformerV2DeNS", "dens_equiformer_v2", "equiformer_v2"),
    mark="backbone.blocks.0.ga.",
    describe=sizes.of_equiformer_v2,
    fixed=_words(
        "max_num_elements num_layers sphere_channels edge_channels lmax_list mmax_list "
        "attn_hidden_channels attn_alpha_channels attn_value_channels num_heads "
        "ffn_hidden_channels"
    ),
    of_training=_words(
        "alpha_drop drop_path_rate proj_drop weight_init activation_checkpoint regress_forces "
        "use_pbc_single num_sphere_samples"
    ),
    last_layer=(".proj.weight", ".proj.bias"),
    defaults={
        "avg_num_nodes": equiformer_v2._AVG_NUM_NODES,  # what None stands for
        "avg_degree": equiformer_v2._AVG_DEGREE,
    },
    keys=_LISTS,
    fast=True,
)

ESCN = Family(
    title="eSCN",
    stock=eSCNBackbone,
    classes="""
dens.ESCNBackbone escn_backbone dens_escn_backbone
dens.ESCNNoiseHead - dens_escn_noise_head
""",
    heads={
        "energy": "escn_energy_head",
        "forces": "escn_force_head",
        "noise": "dens.ESCNNoiseHead",
    },
    flat=("escn", "escn_dens"),
    mark="backbone.layer_blocks.",
    describe=sizes.of_escn,
    fixed=_words(
        "max_num_elements num_layers sphere_channels hidden_channels edge_channels lmax_list "
        "mmax_list"
    ),
    of_training=_words("activation_checkpoint regress_forces use_pbc_single show_timing_info"),
    last_layer=(".fc3.weight",),
    defaults={"lmax_list": [6], "mmax_list": [2]},  # what None stands for
    keys=_LISTS,
)

ESEN = Family(
    title="eSEN",
    stock=eSEN_Backbone,
    classes="""
dens.ESENBackbone esen_backbone dens_esen_backbone
dens.ESENNoiseHead - dens_esen_noise_head
""",
    heads={
        "energy": "esen_mlp_energy_head",
        "forces": "esen_linear_force_head",
        "noise": "dens.ESENNoiseHead",
    },
    flat=(),
    mark="backbone.blocks.0.edge_wise.",
    describe=sizes.of_esen,
    fixed=_words(
        "max_num_elements num_layers sphere_channels hidden_channels edge_channels lmax mmax "
        "num_distance_basis"
    ),
    of_training=_words(
        "activation_checkpointing direct_forces regress_forces regress_stress use_pbc_single"
    ),
    last_layer=(".linear.weight", ".linear.bias"),
)

FAMILIES = (EQUIFORMER_V2, ESCN, ESEN)
TITLES = ", ".join(family.title for family in FAMILIES)


def family_of_weights(names: Iterable[str]) -> Family:
    """Find the family of a state dict, by names in dens; EquiformerV2 if none has left its mark."""
    names = list(names)
    marked = (f for f in FAMILIES if any(name.startswith(f.mark) for name in names))
    return next(marked, EQUIFORMER_V2)


def family_of_section(model: Any) -> Family | None:
    """Find the family of a ``model`` section, of a hydra or a flat model; None for any other."""
    if not isinstance(model, Mapping):
        return None
    backbone = model.get("backbone")
    if backbone is None:
        return next((f for f in FAMILIES if model.get("name") in f.flat), None)
    name = backbone.get("model") if isinstance(backbone, Mapping) else None
    return next((f for f in FAMILIES if name in f.rows[0]), None)
