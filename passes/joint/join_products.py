"""Put products together again that were split for nothing: of a convolution of which none is quantized.

    convolution_backward(..., [True, False, False]), convolution_backward(..., [False, True, True])
        ->  convolution_backward(..., [True, True, True])

Half of a backward may run other code than the whole: the same numbers, other bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import Node

from qgraph.compat import meta
from qgraph.passes.graph.edit import items_of
from qgraph.passes.graph.targets import aten
from qgraph.passes.step import Step


def join_products(step: Step) -> None:
    """Undo the splits of convolutions of which neither product is quantized."""
    halves: dict[object, Node] = {}
    for plan in step.plans:
        node = plan.site.node
        kept = node.target is aten.convolution_backward.default and not plan.operands
        if kept and plan.site.role == "dgrad":
            halves[node.args[:-1]] = node
    joined: dict[Node, Node] = {}
    for plan in step.plans:
        node = plan.site.node
        if node.target is not aten.convolution_backward.default or plan.operands:
            continue
        half = halves.get(node.args[:-1])
        if plan.site.role != "wgrad" or half is None or half in joined:
            continue
        joined[half] = node
        for item in items_of(half, 3)[0]:
            item.update_arg(0, node)
        mask: Any = node.args[-1]
        node.update_arg(len(node.args) - 1, [True, *mask[1:]])
        meta.set_value(node, (meta.value(half)[0], *meta.value(node)[1:]))
        step.graph.erase_node(half)
    step.plans = tuple(
        replace(plan, site=replace(plan.site, node=joined[plan.site.node]))
        if plan.site.node in joined
        else plan
        for plan in step.plans
    )
