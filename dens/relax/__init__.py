"""Relaxation by denoising: settings, forward process, samplers and loop (arXiv:2404.10935)."""
