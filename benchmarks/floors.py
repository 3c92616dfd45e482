"""Count what a training step must compute and move, from the shapes; no GPU is needed.

    python -m benchmarks.floors --size M --structures 16
    OMP_NUM_THREADS=1 python -m benchmarks.floors --size M --structures 1 --device cpu

``now`` are the bytes that the eager fast path reads and writes; ``floor`` those of the same
operation as one kernel, each input read once and each output written once. Features of atoms stay
in the L2 cache where they are gathered, so they count once for each atom. On a CPU the matrix
products are what counts, at the rate of a step's largest one, which is measured on one thread.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse

import torch

from benchmarks.arms import SIZES
from benchmarks.measure import seconds_of, summary

GAUSSIANS = 600  # of a distance
ATOMS = 75  # of a structure
# of an H100 SXM, where none are measured: copies, TB/s; products, TFLOP/s
CEILINGS = {"copy": 3.0, "fp32": 50.0, "tf32": 380.0, "bf16": 700.0}


def shapes(size: str, structures: int, complex_products: int = 4) -> dict:
    """Return the numbers that the counts need, by short names.

    Args:
        complex_products: real products of a complex one, 4, or 3 on a CPU (Gauss).

    R, r: coefficients of atoms and of edges; W: radial weights; P: grid points; N: atoms; E: edges;
    C, H, V, A, F: channels of atoms, hidden, values, logits (all heads), feed-forward network.
    """
    s = SIZES[size]
    (lmax,), (mmax,), heads = s["lmax_list"], s["mmax_list"], s["num_heads"]
    degrees = [lmax + 1 - m for m in range(mmax + 1)]
    channels, atoms = s["sphere_channels"], ATOMS * structures
    return {
        "lmax": lmax,
        "mmax": mmax,
        "layers": s["num_layers"],
        "heads": heads,
        "side": s["grid_resolution"],
        "edge_channels": s["edge_channels"],
        "degrees": degrees,
        "complex_products": complex_products,
        "R": (lmax + 1) ** 2,
        "r": degrees[0] + 2 * sum(degrees[1:]),
        "W": 2 * channels * sum(degrees),
        "P": s["grid_resolution"] ** 2,
        "N": atoms,
        "E": atoms * s["max_neighbors"],
        "C": channels,
        "H": s["attn_hidden_channels"],
        "V": heads * s["attn_value_channels"],
        "A": heads * s["attn_alpha_channels"],
        "F": s["ffn_hidden_channels"],
    }


def convolution(s: dict, width: int, out: int, extra: int) -> tuple[float, float, float]:
    """Count an SO(2) convolution of one edge: flops, numbers in, numbers out."""
    zero, *others = s["degrees"]
    flops = 2 * zero * width * (zero * out + extra)
    flops += sum(2 * s["complex_products"] * (n * width) * (n * out) for n in others)
    return flops, s["r"] * width, s["r"] * out + extra


def _count(flop: float, back: float, floor: tuple, now: tuple) -> dict[str, float]:
    """Convert flops and numbers of float32, each forward and backward, to Gflop and GB."""
    names = ("flop", "flop_back", "floor", "floor_back", "now", "now_back")
    giga = [flop / 1e9, back / 1e9, *(4 * n / 1e9 for n in (*floor, *now))]
    return dict(zip(names, giga, strict=True))


def operations(s: dict) -> dict[str, dict[str, float]]:
    """Count the operations of one layer in float32: Gflop and GB, forward and backward."""
    return {**_edge_operations(s), **_attention_operations(s), **_atom_operations(s)}


def _edge_operations(s: dict) -> dict[str, dict[str, float]]:
    E, N, R, r, W, C, ec = (s[k] for k in ("E", "N", "R", "r", "W", "C", "edge_channels"))
    two, atoms = 2 * C, N * R * C
    found = {}
    flop, hidden = 2 * E * (GAUSSIANS * ec + ec * ec + ec * W), GAUSSIANS + 12 * ec
    floor = (E * (GAUSSIANS + W), E * (2 * GAUSSIANS + W))
    now = (E * (hidden + W), E * (2 * hidden + 2 * W))
    found["radial function"] = _count(flop, 2 * flop, floor, now)
    flop = 2 * r * R * two * E
    floor = (E * (r * R + W + r * two) + atoms, E * (r * R + 2 * W + r * two) + 2 * atoms)
    now = (
        E * (2 * R * two + 3 * r * two + r * R + W),
        E * (4 * R * two + 6 * r * two + 2 * W + 2 * r * R),
    )
    found["rotate in"] = _count(flop, 2 * flop, floor, now)
    return found


def _attention_operations(s: dict) -> dict[str, dict[str, float]]:
    E, N, R, r, P = (s[k] for k in "ENRrP")
    C, H, V, A = (s[k] for k in "CHVA")
    found = {}
    for name, sizes in (("1", (2 * C, H, A + H)), ("2", (H, V, 0))):
        flop, a, b = convolution(s, *sizes)
        floor, now = (E * (a + b), 2 * E * (a + b)), (E * (a + 3 * b), E * (2 * a + 4 * b))
        found[f"SO(2) convolution {name}"] = _count(E * flop, 2 * E * flop, floor, now)
    flop, io, grid = 4 * P * r * H * E, E * r * H, E * P * H
    now = (2 * io + 4 * grid, 3 * io + 6 * grid)
    found["S2 activation"] = _count(flop, 1.5 * flop, (2 * io, 3 * io), now)
    now = (8 * E * A, 12 * E * A)
    found["attention weights"] = _count(10 * E * A, 20 * E * A, (E * A, 2 * E * A), now)
    flop, atoms = 2 * r * R * V * E, N * R * V
    floor = (E * (r * V + r * R) + atoms, E * (2 * r * V + r * R) + atoms)
    now = (
        E * (3 * r * V + 3 * V + 2 * R * V + r * R),
        E * (2 * R * V + 7 * r * V + r * R),
    )
    found["rotate out"] = _count(flop, flop, floor, now)
    return found


def _atom_operations(s: dict) -> dict[str, dict[str, float]]:
    N, R, P, C, F = (s[k] for k in "NRPCF")
    io, grid = N * R * F, N * P * F
    flop = 4 * R * grid + 2 * F * grid
    back = 6 * R * grid + 6 * F * grid
    now = (2 * io + 8 * grid, 3 * io + 17 * grid)
    found = {"grid MLP": _count(flop, back, (2 * io, 3 * io), now)}
    flop, io = N * 2 * R * (2 * C * F + 2 * F * F), N * R * (C + F)
    found["linear layers of atoms"] = _count(flop, 2 * flop, (io, 2 * io), (4 * io, 8 * io))
    return found


def table(size: str, structures: int, ceilings: dict[str, float] = CEILINGS) -> list[str]:
    """Format the counts of one layer, and of a step."""
    s, total = shapes(size, structures), [0.0] * 8
    lines = [
        f"{_described(size, structures, s)}; floors of one layer, forward and backward, ms",
        "",
        "| operation | Gflop | GB now | GB floor | fp32 | tf32 | bf16 | bytes now | bytes floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, o in operations(s).items():
        flop, now, floor = (o[k] + o[f"{k}_back"] for k in ("flop", "now", "floor"))
        times = [flop / ceilings[k] for k in ("fp32", "tf32", "bf16")]
        row = [flop, now, floor, *times, now / ceilings["copy"], floor / ceilings["copy"]]
        total = [t + _times(name, s) * value for t, value in zip(total, row, strict=True)]
        lines.append(f"| {name} | " + " | ".join(f"{value:.3g}" for value in row) + " |")
    cells = " | ".join(f"{value:.3g}" for value in total)
    return [*lines, f"| step (all layers and vector heads) | {cells} |"]


def cpu_table(size: str, structures: int) -> list[str]:
    """Format the arithmetic of a step, and its time on one thread of this CPU."""
    s = shapes(size, structures, complex_products=3)
    rate = products_per_second(s)
    head = f"{_described(size, structures, s)}; arithmetic of one layer, forward and backward"
    lines = [head, "", f"| operation | Gflop | s at {rate:.0f} Gflop/s |", "|---|---|---|"]
    total = 0.0
    for name, o in operations(s).items():
        flop = o["flop"] + o["flop_back"]
        total += _times(name, s) * flop
        lines.append(f"| {name} | {flop:.3g} | {flop / rate:.3g} |")
    return [*lines, f"| step (all layers and vector heads) | {total:.3g} | {total / rate:.3g} |"]


def products_per_second(s: dict) -> float:
    """Measure the largest matrix product of a step, that of m = 0: Gflop/s, upper quartile."""
    width = s["degrees"][0]
    n, k, m = s["E"], width * 2 * s["C"], s["A"] + (width + 1) * s["H"]
    x, weight = torch.randn(n, k), torch.randn(m, k)
    seconds = [seconds_of(lambda: x @ weight.t(), "cpu") for _ in range(20)]
    return 2e-9 * n * k * m / summary(seconds)["low"]


def _described(size: str, structures: int, s: dict) -> str:
    return (
        f"{size}, {structures} structures: {s['N']} atoms, {s['E']} edges, {s['r']} of {s['R']} "
        f"rows, {s['P']} grid points"
    )


def _times(name: str, s: dict) -> int:
    """Return how often a step does an operation of a layer.

    The vector heads together visit each edge once, as a layer's attention does.
    """
    return s["layers"] + (name not in _atom_operations(s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="M")
    parser.add_argument("--structures", type=int, default=16, help="in a batch")
    for name, value in CEILINGS.items():
        unit = "TB/s" if name == "copy" else "TFLOP/s"
        parser.add_argument(f"--{name}", type=float, help=f"{unit}  [{value:g}]")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of the floors")
    args = parser.parse_args()
    given = {name: value for name in CEILINGS if (value := getattr(args, name)) is not None}
    if args.device == "cuda":
        lines = table(args.size, args.structures, {**CEILINGS, **given})
    elif given:
        parser.error(f"--{next(iter(given))} is of a GPU: with --device cpu the rate is measured")
    else:
        torch.set_num_threads(1)
        lines = cpu_table(args.size, args.structures)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
