"""Products of codes through torch's own kernels: a file a kernel, and what was measured of them."""
