"""Data sets: records in OC20's form (``records``), the atomic LMDB writer (``lmdb``), and the demo
data set (``demo``). Nothing here imports fairchem.
"""
