"""Neighbour search, radius graphs and neighbour counts, with and without periodic boundaries."""
