"""A model-compiler pass for low-precision training."""
