"""Checks of a config that belong to one method of training."""
