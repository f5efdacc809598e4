"""Kernels of a GPU, in Triton: a file holds a kernel and how it is launched."""
