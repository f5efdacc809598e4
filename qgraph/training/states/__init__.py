"""Optimizer states and parameters in few bits."""
