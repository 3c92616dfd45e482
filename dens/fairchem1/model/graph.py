"""Graphs for fairchem-core 1.10's models: exact, without fairchem's optional packages, and fast."""

from __future__ import annotations

import torch
from fairchem.core.common.utils import get_pbc_distances
from fairchem.core.models.base import GraphData, GraphModelMixin

from dens import transfer
from dens.graphs.dense import dense_radius_graph, reach_of_images
from dens.graphs.radius import periodic_radius_graph, radius_graph


class RadiusGraphs(GraphModelMixin):
    """Mixin that gives a fairchem model the graphs of :mod:`dens.graphs.radius`.

    With ``use_pbc: false``, edges depend on distances only; ``cell`` and edges stored with the data
    are not read. (fairchem's own graph needs torch-cluster or pyg-lib, and torch-scatter.)

    With ``use_pbc: true`` and ``fast``, a k-d tree finds fairchem's edges in fairchem's order; on a
    GPU, :mod:`dens.graphs.dense`, with and without boundaries, if all directions of a structure are
    alike. fairchem itself makes the graphs of models that are not ``fast``, and reads graphs stored
    with the data; but not of batches whose structures are periodic in different directions, which
    it refuses.

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
        fast = getattr(self, "fast", False)
        ours = (otf_graph or self.otf_graph) and (fast or _mixed(data))
        if periodic and not ours:
            kwargs.update(otf_graph=otf_graph, enforce_max_neighbors_strictly=strict)
            return super().generate_graph(data, cutoff, max_neighbors, use_pbc, **kwargs)
        if strict is None:
            strict = getattr(self, "enforce_max_neighbors_strictly", True)
        cutoff, limit = cutoff or self.cutoff, max_neighbors or self.max_neighbors
        if fast and not transfer.is_host(data.pos.device):
            host = transfer.on_host(data)
            pbc = _directions(host) if periodic else torch.zeros(len(data.natoms), 3).bool()
            if pbc is None or bool((pbc == pbc[:, :1]).all()):
                return _dense_graph(data, host, pbc, cutoff, limit, strict)
        edges = (_periodic_edges if periodic else _open_edges)(data, cutoff, limit, strict)
        count = torch.bincount(data.batch[edges["edge_index"][1]], minlength=len(data.natoms))
        return GraphData(
            **edges,
            neighbors=count,
            node_offset=0,
            batch_full=data.batch,
            atomic_numbers_full=data.atomic_numbers.long(),
        )


def _directions(data) -> torch.Tensor | None:
    """Return the periodic directions of each structure, (n_structures, 3) bool."""
    return data.pbc.view(-1, 3) if hasattr(data, "pbc") else None


def _mixed(data) -> bool:
    """Tell whether structures of a batch are periodic in different directions."""
    pbc = _directions(data)
    return pbc is not None and bool((pbc != pbc[0]).any())


def _dense_graph(data, host, pbc, cutoff: float, limit: int, strict: bool) -> GraphData:
    pos = data.pos
    cell = data.cell if hasattr(data, "cell") else pos.new_zeros(len(data.natoms), 3, 3)
    host_cell = host.cell if hasattr(data, "cell") else torch.zeros(len(data.natoms), 3, 3)
    reach = reach_of_images(host.pos, host_cell, host.natoms, pbc, cutoff)
    layout = (pos, data.batch, cell, host.natoms, reach)
    found = dense_radius_graph(*layout, cutoff, limit, strict=strict)
    (source, target), offsets = found.edge_index, found.cell_offsets
    # no matrix product, which TF32 or autocast would round
    shifts = (offsets[:, :, None] * cell[data.batch[target]]).sum(1)
    vectors = pos[source] - pos[target] + shifts
    count = found.count.new_zeros(len(data.natoms)).index_add(0, data.batch, found.count)
    graph = GraphData(
        edge_index=found.edge_index,
        edge_distance=vectors.norm(dim=-1),
        edge_distance_vec=vectors,
        cell_offsets=offsets,
        offset_distances=shifts,
        neighbors=count,
        batch_full=data.batch,
        atomic_numbers_full=data.atomic_numbers.long(),
    )
    graph.edges_per_atom = found.count_on_host
    return graph


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
