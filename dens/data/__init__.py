"""Data sets: conversion to LMDB, the demo's data, statistics and checks.

Only reading through fairchem's data sets (``stats``, ``check``) needs fairchem, when it is done.
"""
