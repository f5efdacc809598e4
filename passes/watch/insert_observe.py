"""Look at each quantizer as the graph runs: telemetry.

    fake_quant(x, f, axis)  ->  observed_quant(x, ..., f, axis, ..., recorder, place)
    mm(a, b)                ->  observed_mm(a, b, sources of a and b, recorder, place)    of a wgrad

The same bits come out. It goes in last, when the ops are those that run; without telemetry nothing
goes in. `place` names every product that reads the quantizer: "module|role|operand; ...".
"""

from __future__ import annotations

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import add_node, below_permutes
from qgraph.passes.graph.quantizer import Quantizer, Rotation, quantizer_of
from qgraph.passes.graph.targets import argument_node, aten
from qgraph.passes.plan import Plan
from qgraph.passes.step import Step
from qgraph.passes.wanted import quantized_operands


def insert_observe(step: Step) -> None:
    """Observe every quantizer and, if the step's recorder looks at them, quantized wgrads of linear layers.

    The step counts operands that are observed and those that are not: native products have codes only.
    """
    if step.watch.recorder is None:
        return
    recorder, products = step.watch.recorder
    places: dict[Node, list[str]] = {}
    for plan in step.plans:
        if plan.lowered is not None:
            step.not_observed += len(list(quantized_operands(plan)))
            continue
        for _, operand, _ in quantized_operands(plan):
            node, _ = quantizer_of(argument_node(plan.site.node, operand.argument), operand.axis)
            place = f"{plan.site.module}|{plan.site.role}|{operand.kind}"
            places.setdefault(node, []).append(place)
        if products and plan.operands and plan.site.role == "wgrad":
            _observe_product(step.graph, plan, recorder)
    for node, names in places.items():
        _observe(node, recorder, "; ".join(dict.fromkeys(names)))
    step.observed = sum(map(len, places.values()))


def _observe(node: Node, recorder: int, place: str) -> None:
    quantizer = Quantizer.read(node)
    assert quantizer is not None, "the graph was verified"
    node.args = (quantizer.source, *quantizer.watched, recorder, place)
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
            source = argument_node(quantizer_of(argument, operand.axis)[0], 0)
            if (rotation := Rotation.read(source)) is not None:  # redrawn signs: a node of its own
                source = rotation.source
            _, order = below_permutes(argument)
            if order != [0, 1]:
                source = add_node(graph, aten.permute.default, (source, order), like=product)
            sources.append(source)
    product.args = (*product.args, *sources, recorder, f"{plan.site.module}|wgrad")
    product.target = ops.observed_mm
