"""Structures, data sets and trainers that several tests build."""
