"""Monitor training: speed, gradient shares, denoising validation, figures."""
