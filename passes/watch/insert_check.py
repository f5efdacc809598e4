"""Hold every quantized operand against its source as the graph runs: QGRAPH_VERIFY=1.

    fake_quant(x, f, axis)  ->  check(fake_quant(x, f, axis), x, ..., place)

The check passes its first argument on. It goes in last, when the ops are those that run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.targets import argument_node
from qgraph.passes.plan import Plan
from qgraph.passes.watch.verify import quantizer_of


def insert_check(graph: Graph, plans: Sequence[Plan], number: int) -> int:
    """Insert a check behind each quantization; return how many. `number` tells graphs apart."""
    places: dict[Node, str] = {}
    for plan in plans:
        if plan.lowering.startswith("native"):
            continue  # there is no quantized tensor to look at
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=False):
            if wanted.format is None:
                continue
            source = argument_node(plan.site.node, operand.argument)
            node, _ = quantizer_of(source, operand.axis)
            words = f"{plan.site.role} of '{plan.site.module}': its {operand.kind}"
            places.setdefault(node, words)
    for count, (node, words) in enumerate(places.items()):
        # A product may stand in a module more than once.
        _insert(graph, node, f"{words} ({node.name}, operand {count})", number)
    return len(places)


def _insert(graph: Graph, node: Node, place: str, number: int) -> None:
    turns = node.target is ops.rotate_quant  # its signs and output stand before the format
    head = node.args[1:3] if turns else ("", "")
    tail = node.args[3:] if turns else node.args[1:]
    rest = (None, 0, None, None)[len(tail) - 2 :]  # seed, site, rounding, amax
    args = (node, node.args[0], *head, *tail, *rest, number, place)
    with graph.inserting_after(node):
        checked = add_node(graph, ops.checked, args, like=node)
    node.replace_all_uses_with(checked, delete_user_cb=lambda user: user is not checked)
