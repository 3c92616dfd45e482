"""Suites of tests for a subclass to inherit: what each backbone must keep."""
