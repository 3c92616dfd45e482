"""Fixtures for the tests of the adapter to fairchem-core 2, where that is installed."""

from helpers.hosts import MAJOR

if MAJOR == "2":
    from helpers.fairchem2_fixtures import *  # noqa: F403
