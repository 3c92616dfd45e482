"""Fast path of EquiformerV2: fairchem's modules with the same parameters, under the same names."""
