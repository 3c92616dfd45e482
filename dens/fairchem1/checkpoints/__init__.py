"""Checkpoints in and out: their layouts, starting from them, exporting and inspecting them."""
