"""Read the sizes of a backbone off the shapes of its weights, by their names in dens."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

_Weights = Mapping[str, Tensor]
EMBEDDING = "backbone.sphere_embedding.weight"  # (elements, channels) | of every family


def of_equiformer_v2(weights: _Weights) -> dict[str, int]:
    """Return the sizes of an EquiformerV2."""
    block = "backbone.blocks.0."
    shapes = {
        "lmax": (f"{block}ga.proj.weight", 0, -1),
        "num_heads": (f"{block}ga.alpha_dot", 0, 0),
        "attn_alpha_channels": (f"{block}ga.alpha_dot", 1, 0),
        "edge_channels": (f"{block}ga.so2_conv_1.rad_func.net.0.weight", 0, 0),
        "ffn_hidden_channels": (f"{block}ffn.so3_linear_1.weight", 1, 0),
    }
    found = {**_embedding(weights), "num_layers": _count(weights, "backbone.blocks.")}
    found |= _shapes(weights, shapes)
    found["mmax"] = _count(weights, f"{block}ga.so2_conv_1.so2_m_conv.")
    return found


def of_escn(weights: _Weights) -> dict[str, int]:
    """Return the sizes of an eSCN."""
    block = "backbone.layer_blocks.0.message_block."
    shapes = {
        "hidden_channels": (f"{block}so2_block_source.fc1_dist0.weight", 0, 0),
        "edge_channels": (f"{block}edge_block.fc1_dist.weight", 0, 0),
        "num_sphere_samples": ("backbone.sphere_points", 0, 0),
    }
    found = {**_embedding(weights), "num_layers": _count(weights, "backbone.layer_blocks.")}
    found |= _shapes(weights, shapes)
    harmonics = weights.get("backbone.sphharm_weights.0")
    if harmonics is not None:
        found["lmax"] = math.isqrt(harmonics.shape[1]) - 1
    found["mmax"] = _count(weights, f"{block}so2_block_source.so2_conv.")
    return found


def of_esen(weights: _Weights) -> dict[str, int]:
    """Return the sizes of an eSEN."""
    block = "backbone.blocks.0."
    shapes = {
        "edge_channels": ("backbone.source_embedding.weight", 1, 0),
        "hidden_channels": (f"{block}edge_wise.so2_conv_2.fc_m0.weight", 1, 0),
    }
    found = {**_embedding(weights), "num_layers": _count(weights, "backbone.blocks.")}
    found |= _shapes(weights, shapes)
    found["lmax"] = sum(name.startswith("backbone.Jd_") for name in weights) - 1
    found["mmax"] = _count(weights, f"{block}edge_wise.so2_conv_1.so2_m_conv.")
    if "hidden_channels" in found:  # the layer takes the part of order 0 of each degree
        found["hidden_channels"] //= found["lmax"] + 1
    radial = weights.get("backbone.edge_degree_embedding.rad_func.net.0.weight")
    if radial is not None:
        found["num_distance_basis"] = radial.shape[1] - 2 * found["edge_channels"]
    return found


def _embedding(weights: _Weights) -> dict[str, int]:
    if EMBEDDING not in weights:
        return {}
    elements, channels = weights[EMBEDDING].shape
    return {"max_num_elements": elements, "sphere_channels": channels}


def _shapes(weights: _Weights, of: Mapping[str, tuple[str, int, int]]) -> dict[str, int]:
    return {k: weights[n].shape[dim] + more for k, (n, dim, more) in of.items() if n in weights}


def _count(weights: _Weights, prefix: str) -> int:
    """Count the entries of a list of modules."""
    return len({n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)})
