"""Kernels that rotate features into the frames of edges and back."""
