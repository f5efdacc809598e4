"""One operand of a product."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One operand of a product: what it is, where it stands, and the axis the product sums over.

    `layout` is the order of axes it is quantized in, the summed one among the last two; () is its own.
    """

    kind: str  # input, weight, grad_output, lhs, rhs
    argument: int  # position among the node's arguments
    axis: int  # of the argument, negative
    layout: tuple[int, ...] = ()
