"""Relaxation of ASE's structures: conversion, an optimizer's surface, batches."""
