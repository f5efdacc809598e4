"""Turn semantic ops into what the target computes.

    fake_quant(hadamard(x, signs, axis, r), f, axis)  ->  rotate_quant(x, signs, r, f, axis)

One kernel finds the largest magnitude while it rotates, and quantizes in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.plan import Plan


def lower(graph: Graph, plans: Sequence[Plan]) -> None:
    """Fuse each rotation with the one quantization that reads it."""
    if not any(operand.transform for plan in plans for operand in plan.operands):
        return
    for node in list(graph.find_nodes(op="call_function", target=ops.fake_quant)):
        rotation, text, axis, *noise = node.args
        if (
            not isinstance(rotation, Node)
            or rotation.target is not ops.hadamard
            or len(rotation.users) > 1
        ):
            continue
        source, signs, turned, output, *redrawn = rotation.args
        if turned != axis or redrawn:
            continue
        node.target = ops.rotate_quant
        node.args = (source, signs, output, text, axis, *noise)
        graph.erase_node(rotation)
