"""Fixtures for the tests of the adapter to fairchem-core 1.10, where that is installed."""

from helpers.hosts import MAJOR

if MAJOR == "1":
    from helpers.fairchem1_fixtures import *  # noqa: F403
