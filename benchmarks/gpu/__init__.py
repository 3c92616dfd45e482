"""Training steps, their kernels and single operations, measured on a GPU: docs/performance.md."""
