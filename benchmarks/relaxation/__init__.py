"""Evaluation of relaxations by denoising, beside MMFF94 and GFN2-xTB."""
