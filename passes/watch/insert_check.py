"""Hold every quantized operand against its source as the graph runs: QGRAPH_VERIFY=1.

    fake_quant(x, f, axis)  ->  check(fake_quant(x, f, axis), x, ..., place, axes)

The axes are those of the matrix that a product reads. The check passes its first argument on. It
goes in when the ops are those that run.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node
from qgraph.passes.graph.quantizer import Quantizer, matrix_axes, quantizer_of
from qgraph.passes.graph.targets import argument_node
from qgraph.passes.step import Step
from qgraph.passes.wanted import axis_is_free, quantized_operands


def insert_check(step: Step) -> None:
    """Insert a check behind each quantizer, where the step asks for it; native products have none."""
    if not step.watch.check:
        return
    places: dict[Node, tuple[str, tuple[int, int]]] = {}
    for plan in step.plans:
        if plan.lowered is not None:
            continue  # there is no quantized tensor to look at
        for _, operand, wanted in quantized_operands(plan):
            source = argument_node(plan.site.node, operand.argument)
            words = f"{plan.site.role} of '{plan.site.module}': its {operand.kind}"
            node, axes = quantizer_of(source, operand.axis)[0], matrix_axes(source, operand)
            if axis_is_free(wanted):
                axes = min(axes), max(axes)  # as it is quantized
            places.setdefault(node, (words, axes))
    for count, (node, (words, axes)) in enumerate(places.items()):
        # A product may stand in a module more than once.
        place = f"{words} ({node.name}, operand {count})"
        _insert(step.graph, node, step.watch.check, place, axes)
    step.checked = len(places)


def _insert(graph: Graph, node: Node, number: int, place: str, axes: tuple[int, int]) -> None:
    quantizer = Quantizer.read(node)
    assert quantizer is not None, "the graph was verified"
    args = (node, quantizer.source, *quantizer.watched, number, place, axes)
    with graph.inserting_after(node):
        checked = add_node(graph, ops.checked, args, like=node)
    node.replace_all_uses_with(checked, delete_user_cb=lambda user: user is not checked)
