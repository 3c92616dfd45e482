"""Radius graphs and neighbour counts, with and without periodic boundaries."""
