"""Training configs of fairchem-core 1.10: read, translate and check them."""
