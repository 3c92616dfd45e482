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
    reads graphs stored with the data.

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
            ValueError: no two atoms of the batch are within the cutoff; see also
                :func:`dens.graphs.radius.periodic_radius_graph`.
        """
        strict, periodic = enforce_max_neighbors_strictly, use_pbc or self.use_pbc
        ours = getattr(self, "fast", False) and (otf_graph or self.otf_graph)
        if periodic and not (ours and data.pos.device.type == "cpu"):
            kwargs.update(otf_graph=otf_graph, enforce_max_neighbors_strictly=strict)
            return super().generate_graph(data, cutoff, max_neighbors, use_pbc, **kwargs)
        if strict is None:
            strict = getattr(self, "enforce_max_neighbors_strictly", True)
        cutoff, limit = cutoff or self.cutoff, max_neighbors or self.max_neighbors
        edges = (_periodic_edges if periodic else _open_edges)(data, cutoff, limit, strict)
        target = edges["edge_index"][1]
        if len(target) == 0:
            raise ValueError(
                f"expected atoms within max_radius = {cutoff} Å of each other, got none in this "
                f"batch of {len(data.natoms)} structures (model.backbone.max_radius)"
            )
        return GraphData(
            **edges,
            neighbors=torch.bincount(data.batch[target], minlength=len(data.natoms)),
            node_offset=0,
            batch_full=data.batch,
            atomic_numbers_full=data.atomic_numbers.long(),
        )


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
    pbc = data.pbc.view(-1, 3) if hasattr(data, "pbc") else None
    edge_index, offsets = periodic_radius_graph(
        data.pos, data.cell, data.natoms, cutoff, limit, strict=strict, pbc=pbc
    )
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
