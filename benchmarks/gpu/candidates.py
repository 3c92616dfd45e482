"""Candidates for the operations of the fast path: fairchem's or plain PyTorch, and each backend.

To try another, add it to its operation's ``ours``: a name, and a function of the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from fairchem.core.models.equiformer_v2.radial_function import RadialFunction
from fairchem.core.models.equiformer_v2.so3 import SO3_Grid, SO3_Rotation
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.floors import GAUSSIANS
from benchmarks.gpu.harness import with_backend
from dens.fast import ops, reference
from dens.fast.attention import Edges, radial_function
from dens.fast.layout import OrderMajor
from dens.fast.ops import list_edges
from dens.fast.products import complex_linear, three_products

# name of an operation: its name in benchmarks.floors
OPERATIONS = {
    "s2": "S2 activation",
    "rotate_in": "rotate in",
    "rotate_out": "rotate out",
    "grid_mlp": "grid MLP",
    "logits": "attention weights",
    "so2": "SO(2) convolution 1",
    "radial": "radial function",
}


@dataclass
class Operation:
    """Operation, and ways to compute it.

    Attributes:
        name: a key of OPERATIONS.
        n: edges, or atoms, of the measurement.
        inputs: makes the tensors for a number of edges, or atoms.
        grads: inputs that get gradients.
        half: how many of these are bfloat16 where the model is; they come first.
        plain: the operation as fairchem has it, or in plain PyTorch; exact in float64.
        ours: other functions of the same tensors, by name.
    """

    name: str
    n: int
    inputs: Callable[[int], dict]
    grads: list[str]
    half: int
    plain: Callable
    ours: dict[str, Callable]

    @property
    def candidates(self) -> dict[str, Callable]:
        """All ways to compute it, by name."""
        return {"plain": self.plain, **self.ours}


def make_operations(s: dict, device: str, backends: list[str]) -> list[Operation]:
    """Make the operations at the shapes ``s`` of :func:`benchmarks.floors.shapes`."""
    inputs, edges = Inputs(s, device), s["E"]
    orders = range(len(inputs.layout.sizes))

    def each(function: Callable) -> dict[str, Callable]:
        return {name: with_backend(name, function) for name in backends}

    def both(name: str, call: Callable, lists: bool = False) -> tuple[Callable, dict]:
        """The plain form of an operation and its backends, called by ``call``."""
        plain = partial(call, getattr(reference, name))
        return partial(_without_lists, plain) if lists else plain, each(
            partial(call, getattr(ops, name))
        )

    return [
        Operation(
            "s2",
            edges,
            inputs.s2,
            ["gate", *(f"x{m}" for m in orders)],
            1 + len(orders),
            *both("separable_s2", partial(_s2, inputs.layout)),
        ),
        Operation(
            "rotate_in",
            edges,
            inputs.rotate_in,
            ["radial", "x"],
            1,
            *both("rotate_in", partial(_rotate_in, inputs.layout), lists=True),
        ),
        Operation(
            "rotate_out",
            edges,
            inputs.rotate_out,
            [*(f"values{m}" for m in orders), "weights"],
            len(orders),
            *both("rotate_out", partial(_rotate_out, inputs.layout, s["N"]), lists=True),
        ),
        Operation(
            "grid_mlp",
            s["N"],
            inputs.grid_mlp,
            ["x", "weight"],
            1,
            *both("grid_mlp", lambda function, **tensors: function(**tensors)),
        ),
        Operation(
            "logits",
            edges,
            inputs.logits,
            ["x", "weight", "bias", "dot"],
            1,
            *both("attention_logits", partial(_logits, 1e-5, 0.2)),
        ),
        Operation(
            "so2",
            edges,
            inputs.so2,
            ["zero", "one", "both", "w0", "w1", "w2"],
            3,
            partial(_so2, _fairchems_linear),
            {"ours": partial(_so2, complex_linear), "three": partial(_so2, three_products)},
        ),
        Operation(
            "radial",
            edges,
            inputs.radial,
            inputs.weights,
            0,
            inputs.radial_joined,
            {"ours": inputs.radial_split},
        ),
    ]


class Inputs:
    """Random inputs of realistic form, and the radial function's networks."""

    def __init__(self, s: dict, device: str) -> None:
        self.s, self.device = s, device
        # the same for all candidates
        self.rotations, self.grid = cache(self._rotations), cache(self._grid)
        self.layout = OrderMajor(s["lmax"], s["mmax"])
        widths = [GAUSSIANS + 2 * s["edge_channels"], *[s["edge_channels"]] * 2, s["W"]]
        self.net = RadialFunction(widths).net.to(device)
        self.embedding = nn.Embedding(90, s["edge_channels"]).to(device)
        self.weights = [f"w_{name}" for name, _ in self.net.named_parameters()]

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def _targets(self, n: int) -> Tensor:
        """Return sorted targets, as a graph's are."""
        return torch.arange(n, device=self.device) * self.s["N"] // n

    def _sources(self, n: int) -> Tensor:
        return torch.randint(self.s["N"], (n,), device=self.device)

    def _rotations(self, n: int) -> Tensor:
        q = torch.linalg.qr(torch.randn(n, 3, 3))[0]  # a GPU is slow at this
        rotation = SO3_Rotation(self.s["lmax"])
        rotation.set_wigner((q * torch.det(q)[:, None, None]).to(self.device))
        return rotation.wigner[:, self.layout.rows].contiguous()

    def _grid(self, mmax: int, order_major: bool) -> dict[str, Tensor]:
        grid = SO3_Grid(self.s["lmax"], mmax, "component", self.s["side"])
        rows = self.layout.reduced_rows if order_major else slice(None)
        names = ("to_grid", "from_grid")
        matrices = [getattr(grid, f"{name}_mat").flatten(0, 1)[:, rows] for name in names]
        return dict(zip(names, (m.contiguous().to(self.device) for m in matrices), strict=True))

    def s2(self, n: int) -> dict:
        x = {f"x{m}": self.randn(n, k * self.s["H"]) for m, k in enumerate(self.layout.sizes)}
        return {"gate": self.randn(n, self.s["H"]), **x, **self.grid(self.s["mmax"], True)}

    def logits(self, n: int) -> dict:
        heads, channels = self.s["heads"], self.s["A"] // self.s["heads"]
        found = {name: self.randn(channels) for name in ("weight", "bias")}
        return {"x": self.randn(n, self.s["A"]), **found, "dot": self.randn(heads, channels)}

    def grid_mlp(self, n: int) -> dict:
        width = self.s["F"]
        x, weight = self.randn(n, self.s["R"], width), self.randn(width, width) / width**0.5
        return {"x": x, "weight": weight, **self.grid(self.s["lmax"], False)}

    def rotate_in(self, n: int) -> dict:
        x, radial = self.randn(self.s["N"], self.s["R"], self.s["C"]), self.randn(n, self.s["W"])
        ends = {"source": self._sources(n), "target": self._targets(n)}
        ends["lists"] = [list_edges(ends[name], len(x)) for name in ("target", "source")]
        return {"x": x, "radial": radial, "rotation": self.rotations(n), **ends}

    def rotate_out(self, n: int) -> dict:
        edges = {"rotation": self.rotations(n), "target": self._targets(n)}
        edges["lists"] = list_edges(edges["target"], self.s["N"])
        sizes = enumerate(self.layout.sizes)
        values = {f"values{m}": self.randn(n, k * self.s["V"]) for m, k in sizes}
        return {**values, "weights": self.randn(n, self.s["heads"]), **edges}

    def so2(self, n: int) -> dict:
        s, found = self.s, {}
        for m, (name, degrees) in enumerate(
            zip(("zero", "one", "both"), s["degrees"], strict=True)
        ):
            width, out = 2 * s["C"] * degrees, s["H"] * degrees
            found[name] = self.randn(n, width if m == 0 else 2 * width)
            out = 2 * out if m else out + s["A"] + s["H"]
            found[f"w{m}"] = self.randn(out, width) / width**0.5
        return found

    def radial(self, n: int) -> dict:
        length = 12 * torch.rand(n, 1, device=self.device)
        centres = torch.linspace(0, 12, GAUSSIANS, device=self.device)
        distance = torch.exp(-0.5 * ((length - centres) / (2 * centres[1])) ** 2)
        numbers = torch.randint(1, 80, (self.s["N"],), device=self.device)
        found = {"distance": distance, "numbers": numbers}
        found |= {"source": self._sources(n), "target": self._targets(n)}
        return found | {f"w_{name}": p.detach() for name, p in self.net.named_parameters()}

    def radial_joined(self, distance, numbers, source, target, **weights) -> Tensor:
        """Compute the radial function on concatenated inputs, as fairchem does."""
        table = self.embedding.weight.detach().to(distance.dtype)
        x = torch.cat([distance, table[numbers[source]], table[numbers[target]]], dim=1)
        return torch.func.functional_call(self.net, _names(weights), (x,))

    def radial_split(self, distance, numbers, source, target, **weights) -> Tensor:
        """Compute the radial function as the fast path does."""
        edges = Edges(source, target, distance, None, None)
        weights = {f"net.{name}": value for name, value in _names(weights).items()}
        return torch.func.functional_call(_Radial(self), weights, (numbers, edges))


def _names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("w_"): value for name, value in weights.items()}


class _Radial(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.net = inputs.net
        self.source_embedding = self.target_embedding = inputs.embedding

    def forward(self, numbers, edges):
        return radial_function(self, self.net, numbers, edges)


def _without_lists(plain: Callable, lists, **tensors):
    return plain(**tensors)


def _s2(layout, function, gate, to_grid, from_grid, **x):
    return function(gate, list(x.values()), to_grid, from_grid, layout)


def _rotate_in(layout, function, x, radial, rotation, source, target, **lists):
    return function(x, radial, rotation, source, target, layout, **lists)


def _rotate_out(layout, n_atoms, function, weights, rotation, target, lists=None, **values):
    more = () if lists is None else (lists,)
    args = list(values.values()), weights, rotation, layout.degrees_by_order, target, n_atoms
    return function(*args, *more)


def _logits(eps, slope, function, **tensors):
    return function(**tensors, eps=eps, slope=slope)


def _so2(product, zero, one, both, w0, w1, w2):
    return [F.linear(zero, w0), product(one, w1), product(both, w2)]


def _fairchems_linear(x, weight):
    y = F.linear(x.view(len(x), 2, -1), weight)
    real, imaginary = y.chunk(2, dim=2)
    return torch.cat([real[:, 0] - imaginary[:, 1], real[:, 1] + imaginary[:, 0]], dim=1)
