"""Give every product a node of its own, so that each can be quantized on its own terms.

    convolution_backward(dy, x, w, ..., [True, True, True])
        ->  convolution_backward(..., [True, False, False])  dgrad
            convolution_backward(..., [False, True, True])   wgrad, and the bias's gradient

    grouped_mm_fallback(x, w, offsets)               ->  grouped_mm(x, w, offsets)
    grouped_mm_fallback_backward(x, w, offsets, dy)  ->  grouped_mm(dy, w.T, offsets)
                                                         grouped_mm(x.T, dy, offsets)

The numbers stay the same. A bias's gradient parts from the wgrad only where that is quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.targets import argument_node, value_of

if TYPE_CHECKING:
    from qgraph.passes.plan import Plan

aten = torch.ops.aten
# transformers' op for experts where torch has no grouped product, found by name: it need not be installed.
_EXPERTS = "transformers.grouped_mm_fallback"
_EXPERTS_BACKWARD = "transformers.grouped_mm_fallback_backward"


def split_products(graph: Graph) -> None:
    """Split, in place, every node that holds two products."""
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


def join_products(graph: Graph, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Undo the splits of convolutions of which neither product is quantized.

    Half of a backward may run other code than the whole: the same numbers, other bits.
    """
    halves: dict[object, Node] = {}
    for plan in plans:
        node = plan.site.node
        kept = node.target is aten.convolution_backward.default and not plan.operands
        if kept and plan.site.role == "dgrad":
            halves[node.args[:-1]] = node
    joined: dict[Node, Node] = {}
    for plan in plans:
        node = plan.site.node
        if node.target is not aten.convolution_backward.default or plan.operands:
            continue
        half = halves.get(node.args[:-1])
        if plan.site.role != "wgrad" or half is None or half in joined:
            continue
        joined[half] = node
        for item in _items(half)[0]:
            item.update_arg(0, node)
        mask: Any = node.args[-1]
        node.update_arg(len(node.args) - 1, [True, *mask[1:]])
        node.meta["val"] = (half.meta["val"][0], *node.meta["val"][1:])
        graph.erase_node(half)
    return tuple(
        replace(plan, site=replace(plan.site, node=joined[plan.site.node]))
        if plan.site.node in joined
        else plan
        for plan in plans
    )


def split_bias(graph: Graph, plans: Sequence[Plan]) -> None:
    """Sum the gradient of a bias from the gradient in high precision, not from the quantized one."""
    for plan in plans:
        node = plan.site.node
        if not plan.operands or plan.site.role != "wgrad":
            continue
        if node.target is not aten.convolution_backward.default or not node.args[-1][2]:  # type: ignore[index]
            continue
        dy = argument_node(node, 0)
        axes = [axis for axis in range(value_of(dy).dim()) if axis != 1]
        with graph.inserting_before(node):
            total = add_node(graph, aten.sum.dim_IntList, (dy, axes), like=node)
        for item in _items(node)[2]:
            item.replace_all_uses_with(total)
            graph.erase_node(item)
        node.update_arg(len(node.args) - 1, [False, True, False])
        node.meta["val"] = (None, node.meta["val"][1], None)


def _split_convolution(graph: Graph, node: Node) -> None:
    mask: Any = node.args[-1]
    if not mask[0] or not (mask[1] or mask[2]):
        return
    with graph.inserting_before(node):
        dgrad = add_node(graph, node.target, (*node.args[:-1], [True, False, False]), like=node)
    for item in _items(node)[0]:
        item.update_arg(0, dgrad)
    node.update_arg(len(node.args) - 1, [False, *mask[1:]])
    node.meta["val"] = (None, *node.meta["val"][1:])


def _split_experts(graph: Graph, node: Node) -> None:
    x, weight, offsets, dy = _operands(node, 4)
    items = _items(node)
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


def _items(node: Node) -> list[list[Node]]:
    found: list[list[Node]] = [[], [], []]
    for user in node.users:
        assert user.target is getitem, "several results are taken apart by getitem"
        found[int(user.args[1])].append(user)  # type: ignore[arg-type]
    return found
