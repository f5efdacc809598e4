"""What a legal graph is: every planned operand is fed by exactly the op its plan names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.errors import GraphError
from qgraph.passes.graph.edit import below_permutes
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.joint.insert_fake_quant import axis_is_free
from qgraph.passes.joint.insert_gradient import gradients
from qgraph.passes.joint.insert_hadamard import signs_of
from qgraph.passes.plan import Plan
from qgraph.policy import HIGH, OperandPolicy

aten = torch.ops.aten


def verify(graph: Graph, plans: Sequence[Plan]) -> None:
    """Check `graph` against `plans`.

    Raises: GraphError naming the product, the operand and what it should read.
    """
    graph.lint()
    for plan in plans:
        wanted = plan.operands or (HIGH,) * len(plan.site.operands)
        for operand, policy in zip(plan.site.operands, wanted, strict=True):
            _check(plan, operand, policy)
    for forward, _, policy, backward, _ in gradients(plans):
        _check_gradient(forward, policy, backward)


def _check_gradient(forward: Plan, policy: OperandPolicy, backward: Plan) -> None:
    product = backward.site.node
    expected = (str(policy.format), str(policy.gradient))
    for user in product.users:
        found = (user.args[2], user.args[4]) if user.target is ops.quant_backward else ()
        if found != expected:
            raise GraphError(
                f"{product.name} ({backward.site.role} of '{forward.site.module}'): its result passes "
                f"{' '.join(map(str, found)) or 'straight through'}, the plan says {' '.join(expected)}"
            )


def _check(plan: Plan, operand: Operand, policy: OperandPolicy) -> None:
    product = plan.site.node
    source = argument_node(product, operand.argument)
    where = f"{product.name} ({plan.site.role} of '{plan.site.module}'): its {operand.kind}"
    if value_of(source).dtype != value_of(product).dtype:
        raise GraphError(f"{where} is {value_of(source).dtype}, not {value_of(product).dtype}")
    base, along = quantizer_of(source, operand.axis) if policy.changes else (source, 0)
    *found, axis = _describe(base)
    expected = _expect(policy, plan.site.number)
    if found != expected:
        raise GraphError(
            f"{where} reads {' '.join(map(str, found)) or 'a tensor in high precision'}, "
            f"the plan says {' '.join(map(str, expected)) or 'high'}"
        )
    if expected and not axis_is_free(policy) and axis != along:
        raise GraphError(
            f"{where} is quantized along axis {axis}, not the one the product sums over"
        )


def quantizer_of(operand: Node, axis: int) -> tuple[Node, int]:
    """Return the node below what only lays `operand` out, and the axis (negative) that `axis` is there."""
    if operand.target is aten.clone.default:
        operand = argument_node(operand, 0)
    base, order = below_permutes(operand)
    if base.target is aten.reshape.default:  # one axis for batch and positions
        return argument_node(base, 0), -1
    return base, order[axis] - len(order)


def _expect(policy: OperandPolicy, number: int) -> list[object]:
    turned = policy.transform
    expected: list[object] = []
    if turned:
        expected = [signs_of(turned, number), turned.output]
        expected += ["redrawn"] if turned.signs == "step" else []
    if policy.format is None:
        return expected
    return [*expected, str(policy.format), _rounding(str(policy.rounding), policy.draws)]


def _describe(node: Node) -> tuple[object, ...]:
    """Return what `node` does to its argument, in the order of `_expect`, and its axis last."""
    if node.target is ops.hadamard:
        _, signs, axis, output, *redrawn = node.args
        return (signs, output, *(["redrawn"] if redrawn else []), axis)
    if node.target is ops.rotate_quant:
        _, signs, output, text, axis, *tail = node.args
        return (signs, output, text, _rounding_of(tail), axis)
    if node.target is ops.fake_quant:
        _, text, axis, *tail = node.args
        source = argument_node(node, 0)
        below = _describe(source)[:-1] if source.target is ops.hadamard else ()
        return (*below, text, _rounding_of(tail), axis)
    return (None,)


def _rounding_of(tail: Sequence[object]) -> str:
    """Return the rounding that the arguments after the axis ask for."""
    seed = tail[0] if tail else None
    rounding = tail[2] if len(tail) > 2 else None
    usual = "nearest" if seed is None else "stochastic"
    return _rounding(str(rounding or usual), seed is not None)


def _rounding(mode: str, drawn: bool) -> str:
    if mode.startswith("stochastic") == drawn:
        return mode
    return f"{mode} with random scales" if drawn else f"{mode} without random bits"
