"""Give every product a node of its own, so that each can be quantized on its own terms.

    convolution_backward(dy, x, w, ..., [True, True, True])
        ->  convolution_backward(..., [True, False, False])  dgrad
            convolution_backward(..., [False, True, True])   wgrad, and the bias's gradient

    grouped_mm_fallback(x, w, offsets)               ->  grouped_mm(x, w, offsets)
    grouped_mm_fallback_backward(x, w, offsets, dy)  ->  grouped_mm(dy, w.T, offsets)
                                                         grouped_mm(x.T, dy, offsets)

The numbers stay the same; `join_products` undoes what turns out not to be needed.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.passes.graph.edit import add_node, items_of
from qgraph.passes.graph.targets import aten
from qgraph.passes.step import Step

# transformers' op for experts where torch has no grouped product, found by name: it need not be installed.
_EXPERTS = "transformers.grouped_mm_fallback"
_EXPERTS_BACKWARD = "transformers.grouped_mm_fallback_backward"


def split_products(step: Step) -> None:
    """Split every node that holds two products."""
    graph = step.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target).removesuffix(".default")
        if node.target is aten.convolution_backward.default:
            _split_convolution(graph, node)
        elif name == _EXPERTS:
            with graph.inserting_before(node):
                new = add_node(graph, ops.grouped_mm, _operands(node, 3), like=node)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        elif name == _EXPERTS_BACKWARD:
            _split_experts(graph, node)


def _split_convolution(graph: Graph, node: Node) -> None:
    mask: Any = node.args[-1]
    if not mask[0] or not (mask[1] or mask[2]):
        return
    with graph.inserting_before(node):
        dgrad = add_node(graph, node.target, (*node.args[:-1], [True, False, False]), like=node)
    for item in items_of(node, 3)[0]:
        item.update_arg(0, dgrad)
    node.update_arg(len(node.args) - 1, [False, *mask[1:]])
    meta.set_value(node, (None, *meta.value(node)[1:]))


def _split_experts(graph: Graph, node: Node) -> None:
    x, weight, offsets, dy = _operands(node, 4)
    items = items_of(node, 2)
    with graph.inserting_before(node):
        turned = add_node(graph, aten.permute.default, (weight, [0, 2, 1]), like=node)
        products = [add_node(graph, ops.grouped_mm, (dy, turned, offsets), like=node)]
        turned = add_node(graph, aten.permute.default, (x, [1, 0]), like=node)
        products += [add_node(graph, ops.grouped_mm, (turned, dy, offsets), like=node)]
    for product, found in zip(products, items, strict=False):
        for item in found:
            item.replace_all_uses_with(product)
            graph.erase_node(item)
    graph.erase_node(node)
    for product in products:
        if not product.users:
            graph.erase_node(product)


def _operands(node: Node, count: int) -> tuple[Any, ...]:
    """Return the first arguments, also those given by name."""
    return (*node.args, *node.kwargs.values())[:count]
