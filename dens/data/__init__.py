"""Data sets: convert to LMDB, make demo data, check, describe."""
