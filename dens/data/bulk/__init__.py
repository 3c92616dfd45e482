"""Bulk crystals with stress: demo data, MPtrj, checks."""
