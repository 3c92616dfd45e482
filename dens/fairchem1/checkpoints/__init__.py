"""Checkpoints: read every layout, resume or start from them, export, inspect and run them."""
