"""Give convolutions operands laid out in memory as they were.

    convolution(permute(fake_quant(permute(x))), w)  ->  convolution(clone(permute(...)), w)

A quantized operand comes with its channels last. A convolution would answer in that layout, and
the graph's views of its result were captured for another.
"""

from __future__ import annotations

import torch

from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.targets import argument_node, aten, value_of
from qgraph.passes.step import Step


def keep_layout(step: Step) -> None:
    """Copy the quantized operands of each convolution whose result was captured contiguous."""
    graph = step.graph
    for plan in step.plans:
        node = plan.site.node
        if plan.site.op != "conv" or not plan.operands or not value_of(node).is_contiguous():
            continue
        for operand in plan.site.operands:
            source = argument_node(node, operand.argument)
            if value_of(source).is_contiguous():
                continue
            with graph.inserting_before(node):
                args = (source,)
                copy = add_node(graph, aten.clone.default, args, like=node, **_CONTIGUOUS)
            node.update_arg(operand.argument, copy)


_CONTIGUOUS = {"memory_format": torch.contiguous_format}
