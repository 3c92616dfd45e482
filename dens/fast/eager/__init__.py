"""The operations on edges and grids in plain PyTorch, computed in chunks, on any device."""
