"""Rotate the operands the plan rotates.

    mm(x, y)  ->  mm(hadamard(x, signs, -1), hadamard(y, signs, -2))

Both operands are rotated along the axis the product sums over, so the product is the same. Signs
that are redrawn each step take the step's seed.
"""

from __future__ import annotations

from functools import partial

from torch.fx import Graph, Node

from qgraph.passes.graph.edit import wrap_operand
from qgraph.passes.graph.quantizer import Rotation
from qgraph.passes.plan import draws_in_forward
from qgraph.passes.seeds import common_seed
from qgraph.passes.step import Step
from qgraph.passes.wanted import SIGN_SITES, signs_of
from qgraph.policy import Transform


def rotate_operands(step: Step) -> None:
    """Insert a rotation before each operand that has a transform."""
    for plan in step.plans:
        site = plan.site
        for operand, wanted in zip(site.operands, plan.operands, strict=False):
            if wanted.transform is None:
                continue
            seed = None
            if wanted.transform.signs == "step":
                early = draws_in_forward(step.plans)
                seed = common_seed(step.graph, step.facts.processes, in_forward=early)
            call = partial(_rotate, step.graph, site.node, wanted.transform, site.number, seed)
            wrap_operand(step.graph, site.node, operand, call)


def _rotate(
    graph: Graph,
    product: Node,
    turned: Transform,
    number: int,
    seed: Node | None,
    base: Node,
    axis: int,
) -> Node:
    rotation = Rotation(
        source=base, signs=signs_of(turned, number), axis=axis, output=turned.output, seed=seed,
        site=0 if seed is None else SIGN_SITES + number,
    )  # fmt: skip
    return rotation.write(graph, like=product)
