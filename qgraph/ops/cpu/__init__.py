"""Kernels of a CPU: C++ built once by the machine's own compiler, called through ctypes."""
