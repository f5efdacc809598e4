"""What a plan asks of kernels, in the words of `qgraph.ops`: the product, and each operand's quantizer.

It is the same before and after the graph is rewritten, so that what is predicted is what is done.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from qgraph.compat import symbolic
from qgraph.ops import MAX_SUMMED, Known, Multiply, Quantize, Wanted
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.plan import Plan
from qgraph.passes.sites.splits import rows_are_cut, shares_range
from qgraph.policy import HIGH

aten = torch.ops.aten
_MATRICES = (aten.mm.default, aten.addmm.default)


def multiply_of(plan: Plan) -> Multiply:
    """Return the product of a plan as kernels are asked about it."""
    product, site = plan.site.node, plan.site
    result = value_of(product)
    left, right = (quantize_of(plan, index) for index in (0, 1))
    if product.target not in _MATRICES:
        return Multiply(left=left, right=right, dtype=result.dtype, target=str(product.target))
    summed: Any = value_of(argument_node(product, site.operands[0].argument)).shape[-1]
    sizes = (*result.shape, summed)
    adds = product.target is aten.addmm.default
    bias = value_of(argument_node(product, 0)).dim() if adds else 1
    return Multiply(
        left=left,
        right=right,
        dtype=result.dtype,
        target=str(product.target),
        plain=not product.kwargs and bias == 1,
        summed=_at_most(summed),
        flops=2 * prod(sizes) if all(isinstance(size, int) for size in sizes) else None,
    )


def quantize_of(plan: Plan, index: int, wanted: Wanted = "values") -> Quantize | None:
    """Return how an operand is quantized as kernels are asked about it, None if it is high."""
    operand = plan.operands[index] if plan.operands else HIGH
    if operand.format is None:
        return None
    result, turned = value_of(plan.site.node), operand.transform
    usual = "stochastic" if operand.draws else "nearest"
    return Quantize(
        format=operand.format,
        rounding=operand.rounding,
        draws=operand.draws,
        dtype=result.dtype,
        rank=result.dim(),
        wanted=wanted,
        # Signs that are drawn anew are a node of their own: what is quantized is rotated already.
        points=turned.hadamard if turned is not None and turned.signs != "step" else 0,
        known=_known(plan, index),
        named=str(operand.rounding) != usual,
    )


def _known(plan: Plan, index: int) -> Known:
    """Return what is known of an operand's range: from steps before, or from other processes."""
    operand = plan.operands[index]
    if operand.format is not None and operand.format.scale.range.kind == "delayed":
        return "tensor"
    part = plan.parts[index] if plan.parts else None
    if part is None or not shares_range(operand, part):
        return ""
    return "blocks" if rows_are_cut(operand, part) else "tensor"


def _at_most(size: Any) -> int | None:
    """Return a size; of one that changes, the bound that products of integers need, if it keeps to it."""
    if isinstance(size, int):
        return size
    return MAX_SUMMED if symbolic.statically_known_true(size <= MAX_SUMMED) else None
