"""Definitions of functions computed in another way than torch's: what passes may put in their place."""

from qgraph.numerics.functions.softmax import two_pass_softmax

__all__ = ["two_pass_softmax"]
