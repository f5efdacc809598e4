"""What a legal graph is: every planned operand is fed by exactly the op its plan names."""

from __future__ import annotations

from torch.fx import Node

from qgraph import ops
from qgraph.errors import GraphError
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.quantizer import (
    Quantizer,
    Rotation,
    matrix_axes,
    quantizer_of,
    rounding_text,
)
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.plan import Plan
from qgraph.passes.step import Step
from qgraph.passes.wanted import axis_is_free, gradients, shares_rows, signs_of
from qgraph.policy import HIGH, OperandPolicy

_STORES = (ops.quantize, ops.quantize_both, ops.pack)


def verify(step: Step) -> None:
    """Check the graph against the plans of the step.

    Raises: GraphError naming the product, the operand and what it should read.
    """
    step.graph.lint()
    for plan in step.plans:
        wanted = plan.operands or (HIGH,) * len(plan.site.operands)
        for index, (operand, policy) in enumerate(zip(plan.site.operands, wanted, strict=True)):
            if plan.lowered is None:
                _check(plan, operand, policy)
            else:
                _check_codes(plan, plan.lowered, index, policy)
    for forward, _, policy, backward, _ in gradients(step.plans):
        _check_gradient(forward, policy, backward)


def _where(plan: Plan, operand: Operand) -> str:
    return f"{plan.site.node.name} ({plan.site.role} of '{plan.site.module}'): its {operand.kind}"


def _check_gradient(forward: Plan, policy: OperandPolicy, backward: Plan) -> None:
    product = backward.site.node if backward.lowered is None else backward.lowered
    expected = (str(policy.format), str(policy.gradient))
    for user in product.users:
        found = (user.args[2], user.args[4]) if user.target is ops.quant_backward else ()
        if found != expected:
            raise GraphError(
                f"{product.name} ({backward.site.role} of '{forward.site.module}'): its result passes "
                f"{' '.join(map(str, found)) or 'straight through'}, the plan says {' '.join(expected)}"
            )


def _check(plan: Plan, operand: Operand, policy: OperandPolicy) -> None:
    product, where = plan.site.node, _where(plan, operand)
    source = argument_node(product, operand.argument)
    if value_of(source).dtype != value_of(product).dtype:
        raise GraphError(f"{where} is {value_of(source).dtype}, not {value_of(product).dtype}")
    base = quantizer_of(source, operand.axis)[0] if policy.changes else source
    found, axis = _describe(base)
    expected = _expect(policy, plan.site.number)
    if found != expected:
        raise GraphError(
            f"{where} reads {' '.join(map(str, found)) or 'a tensor in high precision'}, "
            f"the plan says {' '.join(map(str, expected)) or 'high'}"
        )
    if expected:
        _check_axes(where, policy, axis, matrix_axes(source, operand))


def _check_axes(
    where: str, policy: OperandPolicy, axis: int | None, matrix: tuple[int, int]
) -> None:
    """Check that a quantizer's blocks lie along the summed axis, and its tiles within one matrix."""
    other, summed = matrix
    if not axis_is_free(policy) and axis != summed:
        raise GraphError(
            f"{where} is quantized along axis {axis}, not the one the product sums over"
        )
    if shares_rows(policy) and {other, summed} != {-1, -2}:
        raise GraphError(
            f"{where} is quantized in tiles of its last two axes, not of the matrix's, which are "
            f"axes {min(matrix)} and {max(matrix)}: matrices would share scales"
        )


def _check_codes(plan: Plan, product: Node, index: int, policy: OperandPolicy) -> None:
    """Check an operand of a product that multiplies codes: what stored them, and that it did so."""
    per_side = 3 if product.target is ops.nvfp4_mm else 2
    stored = argument_node(argument_node(product, index * per_side), 0)
    texts = [arg for arg in stored.args if isinstance(arg, str)]
    if stored.target not in _STORES or str(policy.format) not in texts:
        raise GraphError(
            f"{_where(plan, plan.site.operands[index])} reads codes of "
            f"{stored.target}({', '.join(texts)}), the plan says {policy.format}"
        )


def _expect(policy: OperandPolicy, number: int) -> list[object]:
    turned = policy.transform
    expected: list[object] = []
    if turned:
        expected = [signs_of(turned, number), turned.output]
        expected += ["redrawn"] if turned.signs == "step" else []
    if policy.format is None:
        return expected
    rounding = rounding_text(str(policy.rounding), drawn=policy.draws)
    return [*expected, str(policy.format), rounding]


def _describe(node: Node) -> tuple[list[object], int | None]:
    """Return what `node` does to its argument, in the order of `_expect`, and its axis."""
    if (rotation := Rotation.read(node)) is not None:
        redrawn = ["redrawn"] if rotation.seed is not None else []
        return [rotation.signs, rotation.output, *redrawn], rotation.axis
    if (quantizer := Quantizer.read(node)) is None:
        return [], None
    turned: list[object] = [quantizer.signs, quantizer.output] if quantizer.signs else []
    if Rotation.read(quantizer.source) is not None:
        turned = _describe(quantizer.source)[0]
    return [*turned, quantizer.format, quantizer.rounds], quantizer.axis
