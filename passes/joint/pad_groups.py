"""Give every expert's rows blocks of their own, where a product sums over the rows.

    grouped_mm(x.T, dy, ends)
        ->  grouped_mm(pad_rows(x, ends, 16).T, pad_rows(dy, ends, 16), pad_ends(ends, 16))

A block, or a rotation, that crossed from one expert's rows to the next would mix their numbers.
Zeros between them change no sum.
"""

from __future__ import annotations

from torch.fx import Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node, wrap_operand
from qgraph.passes.graph.targets import argument_node, is_grouped
from qgraph.passes.plan import Plan, summed_multiple
from qgraph.passes.step import Step


def pad_groups(step: Step) -> None:
    """Pad both operands of each quantized product that sums over the rows of a group."""
    graph = step.graph
    for plan in step.plans:
        node = plan.site.node
        multiple = summed_multiple(plan.operands)
        if not is_grouped(node) or plan.site.role != "wgrad" or multiple == 1:
            continue
        ends = argument_node(node, 2)

        def call(base: Node, axis: int, plan: Plan = plan, ends: Node = ends) -> Node:
            args = (base, ends, summed_multiple(plan.operands), axis)
            return add_node(graph, ops.pad_rows, args, like=plan.site.node)

        for operand in plan.site.operands:
            wrap_operand(graph, node, operand, call)
        with graph.inserting_before(node):
            node.update_arg(2, add_node(graph, ops.pad_ends, (ends, multiple), like=node))
