"""Look at each quantizer as the graph runs: telemetry.

    fake_quant(x, f, axis)  ->  observed_quant(x, ..., f, axis, ..., recorder, place)
    mm(a, b)                ->  observed_mm(a, b, sources of a and b, recorder, place)    of a wgrad

The same bits come out. It goes in last, when the ops are those that run; without telemetry nothing
goes in. `place` names every product that reads the quantizer: "module|role|operand; ...".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node, below_permutes
from qgraph.passes.graph.targets import argument_node
from qgraph.passes.plan import Plan
from qgraph.passes.watch.verify import quantizer_of

aten = torch.ops.aten


def insert_observe(
    graph: Graph, plans: Sequence[Plan], recorder: int, *, products: bool
) -> tuple[int, int]:
    """Observe every quantizer and, with `products`, every quantized wgrad of a linear layer.

    Return how many operands are observed and how many are not: native products have codes only.
    """
    places: dict[Node, list[str]] = {}
    left = 0
    for plan in plans:
        if plan.lowering.startswith("native"):
            left += sum(operand.format is not None for operand in plan.operands)
            continue
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=False):
            if wanted.format is None:
                continue
            node = _quantizer(argument_node(plan.site.node, operand.argument), operand.axis)
            place = f"{plan.site.module}|{plan.site.role}|{operand.kind}"
            places.setdefault(node, []).append(place)
        if products and plan.operands and plan.site.role == "wgrad":
            _observe_product(graph, plan, recorder)
    for node, names in places.items():
        _observe(graph, node, recorder, "; ".join(dict.fromkeys(names)))
    return sum(map(len, places.values())), left


def _quantizer(operand: Node, axis: int) -> Node:
    """Return the node that quantizes an operand, below what only lays it out or checks it."""
    node, _ = quantizer_of(operand, axis)
    return argument_node(node, 0) if node.target is ops.checked else node


def _observe(graph: Graph, node: Node, recorder: int, place: str) -> None:
    turns = node.target is ops.rotate_quant  # its signs and output stand before the format
    head = node.args[1:3] if turns else ("", "")
    tail = node.args[3:] if turns else node.args[1:]
    rest = (None, 0, None, None)[len(tail) - 2 :]  # seed, site, rounding, amax
    node.args = (node.args[0], *head, *tail, *rest, recorder, place)
    node.target = ops.observed_quant


def _observe_product(graph: Graph, plan: Plan, recorder: int) -> None:
    product = plan.site.node
    if product.target is not aten.mm.default:
        return
    sources: list[Node] = []
    with graph.inserting_before(product):
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=True):
            argument = argument_node(product, operand.argument)
            if not wanted.changes:
                sources.append(argument)
                continue
            source = argument_node(_quantizer(argument, operand.axis), 0)
            if source.target is ops.hadamard:  # redrawn signs: the rotation is a node of its own
                source = argument_node(source, 0)
            _, order = below_permutes(argument)
            if order != [0, 1]:
                source = add_node(graph, aten.permute.default, (source, order), like=product)
            sources.append(source)
    product.args = (*product.args, *sources, recorder, f"{plan.site.module}|wgrad")
    product.target = ops.observed_mm
