"""Convert published sets of equilibrium molecules: ``dens data qm7x`` and ``dens data qm9``."""
