"""Triton kernels for the operations on edges that move the most memory, on NVIDIA GPUs."""
