"""Multiply gradients by the derivative of the quantizer they pass, where a policy names one.

    dx = mm(dy, w)  ->  dx = quant_backward(mm(dy, w), x, format, axis, estimator)

A gradient that passes straight through the quantizer needs nothing, and gets nothing.
"""

from __future__ import annotations

from qgraph import ops
from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.targets import argument_node, aten, value_of
from qgraph.passes.step import Step
from qgraph.passes.wanted import gradients


def insert_gradient(step: Step) -> None:
    """Insert a quant_backward behind each product that gives the gradient of a quantized operand."""
    graph = step.graph
    for forward, operand, wanted, backward, turned in gradients(step.plans):
        source, product = argument_node(forward.site.node, operand.argument), backward.site.node
        axis = operand.axis
        with graph.inserting_after(product):
            below = product
            if turned:
                axes = [*range(value_of(source).dim())]
                axes[-1], axes[-2] = axes[-2], axes[-1]
                below = source = add_node(graph, aten.permute.default, (source, axes), like=product)
                axis = -3 - axis
        with graph.inserting_after(below):
            args = (product, source, str(wanted.format), axis, str(wanted.gradient))
            new = add_node(graph, ops.quant_backward, args, like=product)
        for user in [user for user in product.users if user is not new]:
            user.replace_input_with(product, new)
