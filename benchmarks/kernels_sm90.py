"""Compile the Triton kernels for Hopper without a GPU: registers, spills, instructions.

    python -m benchmarks.kernels_sm90

Sizes are those of the OC20 recipes: 128 channels, 64 hidden ones, a grid of 18 x 18 points.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compiler

from dens.fast.layout import OrderMajor
from dens.fast.triton import attention_logits, edge_softmax, norms
from dens.fast.triton.grids import grid_activation, grid_network
from dens.fast.triton.rotations import blocks, rotate_in, rotate_out

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
COUNTED = ("FFMA", "FMUL", "FADD", "MUFU", "LDG", "STG", "LDL", "STL")


def signature(kernel, constants: dict[str, int], number: str) -> dict[str, str]:
    """Types of a kernel's arguments, by their names; ``number``: that of the features."""
    integers = ("n", "stride", "along_edges", "along_heads", "grad_edges", "grad_heads")
    types = dict.fromkeys((*integers, "gate_stride", "x_stride"), "i32")
    types |= dict.fromkeys(constants, "constexpr")
    numbers = dict.fromkeys(("u", "g", "rotation", "dots", "sums", "balance"), "*fp32")
    indices = ("source", "target", "order", "starts", "numbers")
    return {
        name: types.get(name)
        or ("*i64" if name.split("_")[-1] in indices else numbers.get(name, f"*{number}"))
        for name in kernel.arg_names
    }


def compiled(kernel, constants: dict[str, int], number: str, **options):
    """Compile a kernel for compute capability 9.0."""
    types = signature(kernel, constants, number)
    source = _source(kernel, types, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _source(kernel, types: dict[str, str], constants: dict[str, int]) -> ASTSource:
    """Describe a kernel as Triton does at run time: addresses are multiples of 16 bytes."""
    aligned = [i for i, kind in enumerate(types.values()) if kind.startswith("*")]
    if not hasattr(compiler, "AttrsDescriptor"):
        attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
        return ASTSource(kernel, types, constants, attributes)
    numbers = {name: i for i, name in enumerate(types)}  # Triton 3.0 names arguments by number
    types = {numbers[name]: kind for name, kind in types.items() if kind != "constexpr"}
    constants = {numbers[name]: value for name, value in constants.items()}
    return ASTSource(kernel, types, constants, compiler.AttrsDescriptor(frozenset(aligned)))


def usage(built) -> dict[str, int]:
    """Read registers, stack and counts of instructions off a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        texts = [
            subprocess.run([TOOL, option, file.name], capture_output=True, text=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        ]
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", texts[0])}
    return found | {name: len(re.findall(rf"\b{name}\b", texts[1])) for name in COUNTED}


def cases():
    """Yield name, kernel, constants and options of all kernels."""
    for size, lmax in (("M", 4), ("L", 6)):
        layout = OrderMajor(lmax, 2)
        both = zip(
            grid_activation.kernels(layout, 18, "float32"),
            (grid_activation.FORWARD, grid_activation.BACKWARD),
            strict=True,
        )
        for kernel, how in both:
            yield size, kernel, {"C": 64, "BN": how["BN"]}, {"num_warps": how["num_warps"]}
        orders = tuple(m for degree in range(lmax + 1) for m in range(-degree, degree + 1))
        sizes = {"C": 128, "BN": grid_network.COLUMNS["BN"]}
        for kernel in grid_network.kernels(orders, 18, "float32"):
            yield size, kernel, sizes, {"num_warps": grid_network.COLUMNS["num_warps"]}
        for kernel in rotate_in.kernels(layout, "float32"):
            yield size, kernel, {"C": 128, "BN": 128}, blocks.EDGE
        for rows in (layout.degrees_by_order, ((1,), (1, 1))):
            for kernel in rotate_out.kernels(rows, "float32"):
                yield size, kernel, {"C": 128, "V": 16, "BN": 128}, blocks.EDGE
    sizes = {"H": 8, "A": 64, "HEADS": 8, "CHANNELS": 64, "DTYPE": tl.float32}
    for kernel in (edge_softmax.forward, edge_softmax.backward):
        constants = {"H": 8, "HEADS": 8, "EDGES": edge_softmax.EDGES, "DTYPE": tl.float32}
        yield "softmax,", kernel, constants, {"num_warps": 1}
    for kernel in (attention_logits.forward, attention_logits.backward):
        constants = {"EPS": 1e-5, "SLOPE": 0.2, **sizes}
        yield "logits,", kernel, constants, {"num_warps": attention_logits.WARPS}
    sizes = {"EPS": 1e-5, "C": 128, "CHANNELS": 128, "DTYPE": tl.float32}
    for kernel in (norms.norm_silu, norms.norm_silu_grads):
        how = dict(norms.ROWS)
        constants = {**sizes, "ROWS": how.pop("ROWS")}
        yield "radial,", kernel, {**constants, "ELEMENTS": 0, "ALL": 1}, how
        yield "radial with elements,", kernel, {**constants, "ELEMENTS": 90, "ALL": 128}, how
    for size, lmax, rows in (("M", 4, 32), ("L", 6, 64)):
        for kernel in (norms.degree_norm, norms.degree_norm_grads):
            degrees = {"R": (lmax + 1) ** 2, "LMAX": lmax, "RR": rows}
            yield size, kernel, {**sizes, **degrees}, norms.ATOM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", default=[""], help="of kernels' names, as norm, rotate")
    words = parser.parse_args().words
    print("| kernel | features | registers | stack | " + " | ".join(COUNTED) + " |")
    print("|---" * (4 + len(COUNTED)) + "|")
    for size, kernel, constants, options in cases():
        if not any(word in f"{size} {kernel.fn.__name__}" for word in words):
            continue
        for number in ("fp32", "bf16"):
            found = usage(compiled(kernel, constants, number, **options))
            counts = " | ".join(str(found[name]) for name in COUNTED)
            name = f"{size} {kernel.fn.__name__}"
            print(
                f"| {name} | {number} | {found['REG']} | {found['STACK']} | {counts} |", flush=True
            )


if __name__ == "__main__":
    main()
