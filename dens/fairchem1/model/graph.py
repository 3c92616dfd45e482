"""Graphs for fairchem-core 1.10's models: exact, without fairchem's optional packages, and fast."""

from __future__ import annotations

import torch
from fairchem.core.common.utils import get_pbc_distances
from fairchem.core.models.base import GraphData, GraphModelMixin

from dens.graphs.radius import periodic_radius_graph, radius_graph


class RadiusGraphs(GraphModelMixin):
    """Gives a fairchem model the graphs of :mod:`dens.graphs.radius`.

    Where it has ``use_pbc: false``: fairchem's own way needs torch-cluster or pyg-lib, and
    torch-scatter. Here the edges depend on distances only: ``cell`` is not read and may be absent,
    nor are edges stored with the data.

    Where it has ``use_pbc: true`` and ``fast``: fairchem's edges in fairchem's order, found by a
    k-d tree. Graphs of structures on a GPU, of models that are not ``fast``, and graphs stored
    with the data are fairchem's.

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
        """fairchem's ``generate_graph``, with the model's settings where an argument is None.

        Raises:
            ValueError: no two atoms of the batch are within the cutoff; what
                :func:`dens.graphs.radius.periodic_radius_graph` says of positions and cells.
        """
        strict, periodic = enforce_max_neighbors_strictly, use_pbc or self.use_pbc
        ours = getattr(self, "fast", False) and (otf_graph or self.otf_graph)
        if periodic and not (ours and data.pos.device.type == "cpu"):
            kwargs.update(otf_graph=otf_graph, enforce_max_neighbors_strictly=strict)
            return super().generate_graph(data, cutoff, max_neighbors, use_pbc, **kwargs)
        if strict is None:
            strict = getattr(self, "enforce_max_neighbors_strictly", True)
        cutoff = cutoff or self.cutoff
        args = data, cutoff, max_neighbors or self.max_neighbors, strict
        edges = _periodic_edges(*args) if periodic else _open_edges(*args)
        source, target = edges["edge_index"]
        if len(source) == 0:
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


def _open_edges(data, cutoff: float, max_neighbors: int, strict: bool) -> dict[str, torch.Tensor]:
    edge_index = radius_graph(data.pos, data.batch, cutoff, max_neighbors, strict=strict)
    vectors = data.pos[edge_index[0]] - data.pos[edge_index[1]]
    return {
        "edge_index": edge_index,
        "edge_distance": vectors.norm(dim=-1),
        "edge_distance_vec": vectors,
        "cell_offsets": torch.zeros_like(vectors),
        "offset_distances": torch.zeros_like(vectors),
    }


def _periodic_edges(
    data, cutoff: float, max_neighbors: int, strict: bool
) -> dict[str, torch.Tensor]:
    pbc = data.pbc.view(-1, 3) if hasattr(data, "pbc") else None
    edge_index, cell_offsets = periodic_radius_graph(
        data.pos, data.cell, data.natoms, cutoff, max_neighbors, strict=strict, pbc=pbc
    )
    count = torch.bincount(data.batch[edge_index[1]], minlength=len(data.natoms))
    # fairchem's rounding: outputs are those of its own graph to the last bit
    found = get_pbc_distances(
        data.pos,
        edge_index,
        data.cell,
        cell_offsets,
        count,
        return_offsets=True,
        return_distance_vec=True,
    )
    return {
        "edge_index": edge_index,
        "edge_distance": found["distances"],
        "edge_distance_vec": found["distance_vec"],
        "cell_offsets": cell_offsets,
        "offset_distances": found["offsets"],
    }
