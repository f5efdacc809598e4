"""Rewrites of the captured model before autograd, whose backward follows by itself."""
