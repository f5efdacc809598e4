"""Multiply gradients by the derivative of the quantizer they pass, where a policy names one.

    dx = mm(dy, w)  ->  dx = quant_backward(mm(dy, w), x, format, axis, estimator)

A gradient that passes straight through the quantizer needs nothing, and gets nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.fx import Graph

from qgraph import ops
from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.plan import Plan
from qgraph.policy import OperandPolicy


def insert_gradient(graph: Graph, plans: Sequence[Plan]) -> None:
    """Insert a quant_backward behind each product that gives the gradient of a quantized operand."""
    for forward, operand, wanted, backward, turned in gradients(plans):
        source, product = argument_node(forward.site.node, operand.argument), backward.site.node
        axis = operand.axis
        with graph.inserting_after(product):
            below = product
            if turned:
                axes = [*range(value_of(source).dim())]
                axes[-1], axes[-2] = axes[-2], axes[-1]
                below = source = add_node(
                    graph, torch.ops.aten.permute.default, (source, axes), like=product
                )
                axis = -3 - axis
        with graph.inserting_after(below):
            args = (product, source, str(wanted.format), axis, str(wanted.gradient))
            new = add_node(graph, ops.quant_backward, args, like=product)
        for user in [user for user in product.users if user is not new]:
            user.replace_input_with(product, new)


def gradients(
    plans: Sequence[Plan],
) -> Iterator[tuple[Plan, Operand, OperandPolicy, Plan, bool]]:
    """Yield (forward plan, operand, its policy, backward plan, transposed) for every such gradient.

    Of Y = A·B, the gradient of A is the product of dY and B: transposed, if dY comes second. That
    of B is the product of A and dY: transposed, if dY comes first.
    """
    behind: dict[object, list[Plan]] = {}
    for plan in plans:
        if plan.site.role != "fprop":
            behind.setdefault(plan.site.node.meta.get("seq_nr"), []).append(plan)
    for plan in plans:
        if plan.site.role != "fprop" or plan.site.op == "conv":
            continue
        pairs = list(zip(plan.site.operands, plan.operands, strict=False))
        for index, (operand, wanted) in enumerate(pairs):
            if wanted.gradient.straight:
                continue
            other = plan.site.operands[1 - index].kind
            for backward in behind.get(plan.site.node.meta.get("seq_nr"), []):
                kinds = backward.site.operand_kinds
                if set(kinds) == {"grad_output", other}:
                    yield plan, operand, wanted, backward, kinds.index("grad_output") != index
