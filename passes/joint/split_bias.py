"""Sum the gradient of a bias from the gradient in high precision, not from the quantized one.

convolution_backward(dy, ..., [False, True, True])
->  convolution_backward(dy, ..., [False, True, False]), sum(dy)
"""

from __future__ import annotations

from qgraph.compat import meta
from qgraph.passes.graph.edit import add_node, items_of
from qgraph.passes.graph.targets import argument_node, aten, value_of
from qgraph.passes.step import Step


def split_bias(step: Step) -> None:
    """Part the bias's gradient from each quantized wgrad of a convolution."""
    graph = step.graph
    for plan in step.plans:
        node = plan.site.node
        if not plan.operands or plan.site.role != "wgrad":
            continue
        if node.target is not aten.convolution_backward.default or not node.args[-1][2]:  # type: ignore[index]
            continue
        dy = argument_node(node, 0)
        axes = [axis for axis in range(value_of(dy).dim()) if axis != 1]
        with graph.inserting_before(node):
            total = add_node(graph, aten.sum.dim_IntList, (dy, axes), like=node)
        for item in items_of(node, 3)[2]:
            item.replace_all_uses_with(total)
            graph.erase_node(item)
        node.update_arg(len(node.args) - 1, [False, True, False])
        meta.set_value(node, (None, meta.value(node)[1], None))
