"""CUDA graphs: a part of a model that is launched as one, forward and backward."""
