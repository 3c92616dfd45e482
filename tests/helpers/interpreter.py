"""Runs Triton's kernels in its interpreter where there is no GPU; to be imported before Triton."""

import os

import numpy
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def need_triton() -> None:
    """Skip a test of kernels where they can run neither on a GPU nor in the interpreter."""
    pytest.importorskip("triton", reason="torch without CUDA brings no Triton")
    old = numpy.lib.NumpyVersion(numpy.__version__) < "2.4.0"
    if not (old or torch.cuda.is_available()):
        pytest.skip("Triton's interpreter cannot loop up to a loaded number with NumPy 2.4")
