"""Rotate the operands the plan rotates.

    mm(x, y)  ->  mm(hadamard(x, signs, -1), hadamard(y, signs, -2))

Both operands are rotated along the axis the product sums over, so the product is the same. Signs
that are redrawn each step take the step's seed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.numerics import TE_SIGNS, random_signs
from qgraph.passes.edit import add_node, wrap_operand
from qgraph.passes.plan import Plan
from qgraph.passes.seeds import common_seed, drawn_in_forward
from qgraph.policy import Transform

_SIGNS = 1 << 30  # the sites that signs are drawn at: apart from those of codes


def insert_hadamard(graph: Graph, plans: Sequence[Plan]) -> None:
    """Insert a rotation before each operand that has a transform."""
    for plan in plans:
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=False):
            if wanted.transform is None:
                continue
            signs = signs_of(wanted.transform, plan.site.number)
            tail: tuple[object, ...] = (wanted.transform.output,)
            if wanted.transform.signs == "step":
                seed = common_seed(graph, plan.processes, in_forward=drawn_in_forward(plans))
                tail += (seed, _SIGNS + plan.site.number)

            def call(
                base: Node, axis: int, plan: Plan = plan, signs: str = signs,
                tail: tuple[object, ...] = tail,
            ) -> Node:  # fmt: skip
                return add_node(
                    graph, ops.hadamard, (base, signs, axis, *tail), like=plan.site.node
                )

            wrap_operand(graph, plan.site.node, operand, call)


def signs_of(transform: Transform, number: int) -> str:
    """Return the signs of a transform at site `number` as text, one + or - for each of its points."""
    match transform.signs:
        case "te":
            return TE_SIGNS
        case "run":
            return random_signs(transform.hadamard, transform.seed, _SIGNS - 1)
        case "site":
            return random_signs(transform.hadamard, transform.seed, _SIGNS + number)
    return "+" * transform.hadamard
