"""Rotate the operands the plan rotates.

    mm(x, y)  ->  mm(hadamard(x, signs, -1), hadamard(y, signs, -2))

Both operands are rotated along the axis the product sums over, so the product is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.numerics import TE_SIGNS
from qgraph.passes.edit import add_node, wrap_operand
from qgraph.passes.plan import Plan
from qgraph.policy import Transform


def insert_hadamard(graph: Graph, plans: Sequence[Plan]) -> None:
    """Insert a rotation before each operand that has a transform."""
    for plan in plans:
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=False):
            if wanted.transform is None:
                continue
            arguments = (signs_of(wanted.transform), wanted.transform.output)

            def call(
                base: Node, axis: int, plan: Plan = plan, arguments: tuple[str, str] = arguments
            ) -> Node:
                signs, rounding = arguments
                return add_node(
                    graph, ops.hadamard, (base, signs, axis, rounding), like=plan.site.node
                )

            wrap_operand(graph, plan.site.node, operand, call)


def signs_of(transform: Transform) -> str:
    """Return the signs of a transform as text, one + or - for each of its points."""
    return TE_SIGNS if transform.signs == "te" else "+" * transform.hadamard
