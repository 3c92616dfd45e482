"""Describe and check data sets: ``dens data stats`` and ``dens data check``."""
