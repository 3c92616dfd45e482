"""Graphs for fairchem-core 1.10's models: exact, without fairchem's optional packages, and fast."""

from __future__ import annotations

import torch
from fairchem.core.common.utils import get_pbc_distances
from fairchem.core.models.base import GraphData, GraphModelMixin

from dens.graphs.radius import periodic_radius_graph, radius_graph


class RadiusGraphs(GraphModelMixin):
    """Mixin that gives a fairchem model the graphs of :mod:`dens.graphs.radius`.

    With ``use_pbc: false``, edges depend on distances only; ``cell`` and edges stored with the data
    are not read. (fairchem's own graph needs torch-cluster or pyg-lib, and torch-scatter.)

    With ``use_pbc: true`` and ``fast``, a k-d tree finds fairchem's edges in fairchem's order.
    fairchem itself makes the graphs of structures on a GPU and of models that are not ``fast``, and
    reads graphs stored with the data; but not of batches whose structures are periodic in different
    directions, which it refuses.

    A batch in which no atom has a neighbour gets a graph without edges.

    Stands before the parent: ``class Backbone(RadiusGraphs, EquiformerV2Backbone)``.
    """

    def generate_graph(
        self,
        data,
        cutoff=None,
        max_neighbors=None,
        use_pbc=None,
        otf_graph=None,
        enforce_max_neighbors_strictly=None,
        **kwargs,
    ) -> GraphData:
        """Make the graph of a batch; arguments that are None default to the model's settings.

        Raises:
            ValueError: see :func:`dens.graphs.radius.periodic_radius_graph`.
        """
        strict, periodic = enforce_max_neighbors_strictly, use_pbc or self.use_pbc
        fast = getattr(self, "fast", False) and data.pos.device.type == "cpu"
        ours = (otf_graph or self.otf_graph) and (fast or _mixed(data))
        if periodic and not ours:
            kwargs.update(otf_graph=otf_graph, enforce_max_neighbors_strictly=strict)
            return super().generate_graph(data, cutoff, max_neighbors, use_pbc, **kwargs)
        if strict is None:
            strict = getattr(self, "enforce_max_neighbors_strictly", True)
        cutoff, limit = cutoff or self.cutoff, max_neighbors or self.max_neighbors
        edges = (_periodic_edges if periodic else _open_edges)(data, cutoff, limit, strict)
        count = torch.bincount(data.batch[edges["edge_index"][1]], minlength=len(data.natoms))
        return GraphData(
            **edges,
            neighbors=count,
            node_offset=0,
            batch_full=data.batch,
            atomic_numbers_full=data.atomic_numbers.long(),
        )


def _mixed(data) -> bool:
    """Tell whether structures of a batch are periodic in different directions."""
    if not hasattr(data, "pbc"):
        return False
    pbc = data.pbc.view(-1, 3)
    return bool((pbc != pbc[0]).any())


def _open_edges(data, cutoff: float, limit: int, strict: bool) -> dict[str, torch.Tensor]:
    edge_index = radius_graph(data.pos, data.batch, cutoff, limit, strict=strict)
    vectors = data.pos[edge_index[0]] - data.pos[edge_index[1]]
    return {
        "edge_index": edge_index,
        "edge_distance": vectors.norm(dim=-1),
        "edge_distance_vec": vectors,
        "cell_offsets": torch.zeros_like(vectors),
        "offset_distances": torch.zeros_like(vectors),
    }


def _periodic_edges(data, cutoff: float, limit: int, strict: bool) -> dict[str, torch.Tensor]:
    pbc = data.pbc.view(-1, 3).cpu() if hasattr(data, "pbc") else None
    structures = (data.pos.detach().cpu(), data.cell.cpu(), data.natoms.cpu())
    found = periodic_radius_graph(*structures, cutoff, limit, strict=strict, pbc=pbc)
    edge_index, offsets = (part.to(data.pos.device) for part in found)
    count = torch.bincount(data.batch[edge_index[1]], minlength=len(data.natoms))
    # fairchem's function, so that rounding, and thus outputs, are fairchem's to the last bit
    flags = {"return_offsets": True, "return_distance_vec": True}
    found = get_pbc_distances(data.pos, edge_index, data.cell, offsets, count, **flags)
    return {
        "edge_index": edge_index,
        "edge_distance": found["distances"],
        "edge_distance_vec": found["distance_vec"],
        "cell_offsets": offsets,
        "offset_distances": found["offsets"],
    }
