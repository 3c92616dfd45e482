"""The radius graph against a loop over all pairs, and what its edges may depend on."""

import pytest
import torch

from dens.neighbors import radius_graph


def by_loop(pos, batch, cutoff, max_neighbors, strict):
    """Edges atom by atom; the rule for ties as documented."""
    edges = []
    for i in range(len(pos)):
        near = []
        for j in range(len(pos)):
            squared = ((pos[j] - pos[i]) ** 2).sum().item()
            if j != i and batch[j] == batch[i] and 1e-4 < squared <= cutoff**2:
                near.append((squared, j))
        near.sort()
        if max_neighbors is not None and len(near) > max_neighbors:
            limit = near[max_neighbors][0] + 0.01
            near = near[:max_neighbors] if strict else [n for n in near if n[0] <= limit]
        edges += [(j, i) for j in sorted(j for _, j in near)]
    return edges


def grid(n: int, spacing: float = 1.0) -> torch.Tensor:
    """Atoms on a cubic grid: every distance occurs many times."""
    axis = torch.arange(n, dtype=torch.float64) * spacing
    return torch.cartesian_prod(axis, axis, axis)


def structures(name: str):
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(n, 3, generator=generator, dtype=torch.float64) * 4 for n in (5, 1, 17, 2)]
    parts = {
        "random": random,
        "ties": [grid(3), random[0]],
        "single atoms": [torch.zeros(1, 3), torch.zeros(1, 3)],
        "far apart": [torch.eye(3, dtype=torch.float64) * 100],
        "no atoms": [torch.zeros(0, 3)],
        "on top of each other": [torch.cat([random[0], random[0], random[0] + 5e-3])],
    }[name]
    batch = [torch.full((len(p),), 3 * i) for i, p in enumerate(parts)]  # ids with gaps
    return torch.cat(parts), torch.cat(batch)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("max_neighbors", [None, 1, 4, 500])
@pytest.mark.parametrize(
    "name", ["random", "ties", "single atoms", "far apart", "no atoms", "on top of each other"]
)
def test_equals_the_loop_over_all_pairs(name, max_neighbors, strict):
    pos, batch = structures(name)
    expected = by_loop(pos, batch, 2.0, max_neighbors, strict)
    edges = radius_graph(pos, batch, 2.0, max_neighbors, strict=strict)
    assert edges.dtype == torch.int64
    assert list(map(tuple, edges.T.tolist())) == expected
    in_single = radius_graph(pos.float(), batch, 2.0, max_neighbors, strict=strict)
    assert torch.equal(in_single, edges)


def test_limits():
    pos, batch = structures("ties")
    strict = radius_graph(pos, batch, 2.0, 4)
    assert strict[1].bincount().max() == 4
    tolerant = radius_graph(pos, batch, 2.0, 4, strict=False)
    centre = tolerant[0][tolerant[1] == 13]  # the centre of the 3 x 3 x 3 grid: six at distance 1
    assert centre.tolist() == [4, 10, 12, 14, 16, 22]


def test_low_precision_and_gradients():
    pos, batch = structures("random")
    expected = radius_graph(pos.half(), batch, 2.0)
    # compared as numbers, not in half precision, where the squares of distances would overflow
    assert torch.equal(radius_graph(pos.half().double(), batch, 2.0), expected)
    assert not radius_graph(pos.clone().requires_grad_(), batch, 2.0).requires_grad


def test_moving_and_turning_changes_nothing():
    pos, batch = structures("random")
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    moved = pos @ turn.T + 70
    assert torch.equal(radius_graph(moved, batch, 2.0, 3), radius_graph(pos, batch, 2.0, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(3), 1.0), r"got \(2, 3\) and \(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2), 0.0), "cutoff must be > 0, got 0.0"),
        ((torch.zeros(2, 3), torch.zeros(2), 1.0, 0), "max_neighbors must be at least 1"),
        ((torch.zeros(2, 3), torch.tensor([1, 0]), 1.0), "batch must be in ascending order"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        radius_graph(*arguments)
