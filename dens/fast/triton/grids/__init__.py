"""Kernels on a grid of latitudes and longitudes."""
