"""Runs Triton's kernels in its interpreter where there is no GPU; to be imported before Triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
