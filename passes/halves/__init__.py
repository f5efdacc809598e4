"""Rewrites of forward and backward after the cut."""
