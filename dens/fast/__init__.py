"""Faster operations of EquiformerV2 in plain PyTorch, without fairchem.

Edge features are *order-major*: first the coefficients of order m = 0 of all degrees, then for
each m > 0 those of +m and of -m, by ascending degree. The SO(2) convolution then reads
consecutive memory; the permutation from the usual degree-major layout is part of the Wigner
matrices (:mod:`dens.fast.layout`).
"""
