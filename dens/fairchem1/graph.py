"""Graphs of structures without periodic boundaries, for fairchem-core 1.10's models."""

from __future__ import annotations

import torch
from fairchem.core.models.base import GraphData, GraphModelMixin

from dens.neighbors import radius_graph


class OpenBoundaries(GraphModelMixin):
    """Gives a fairchem model its graph where it has ``use_pbc: false``.

    fairchem's own way needs torch-cluster or pyg-lib, and torch-scatter. Here the edges depend on
    distances only: ``cell`` is not read and may be absent, nor are edges stored with the data.
    Periodic graphs are fairchem's. Stands before the parent:
    ``class Backbone(OpenBoundaries, EquiformerV2Backbone)``.
    """

    def generate_graph(
        self,
        data,
        cutoff=None,
        max_neighbors=None,
        use_pbc=None,
        enforce_max_neighbors_strictly=None,
        **kwargs,
    ) -> GraphData:
        """fairchem's ``generate_graph``, with the model's settings where an argument is None.

        Raises:
            ValueError: no two atoms of the batch are within the cutoff.
        """
        strict = enforce_max_neighbors_strictly
        if use_pbc or self.use_pbc:
            kwargs["enforce_max_neighbors_strictly"] = strict
            return super().generate_graph(data, cutoff, max_neighbors, use_pbc, **kwargs)
        if strict is None:
            strict = getattr(self, "enforce_max_neighbors_strictly", True)
        cutoff = cutoff or self.cutoff
        edge_index = radius_graph(
            data.pos, data.batch, cutoff, max_neighbors or self.max_neighbors, strict=strict
        )
        source, target = edge_index
        if len(source) == 0:
            raise ValueError(
                f"expected atoms within max_radius = {cutoff} Å of each other, got none in this "
                f"batch of {len(data.natoms)} structures (model.backbone.max_radius)"
            )
        vectors = data.pos[source] - data.pos[target]
        no_offset = data.pos.new_zeros(len(source), 3)
        return GraphData(
            edge_index=edge_index,
            edge_distance=vectors.norm(dim=-1),
            edge_distance_vec=vectors,
            cell_offsets=no_offset,
            offset_distances=no_offset,
            neighbors=torch.bincount(data.batch[target], minlength=len(data.natoms)),
            node_offset=0,
            batch_full=data.batch,
            atomic_numbers_full=data.atomic_numbers.long(),
        )
