"""Compute again in the backward what comes from a parameter, which lies in memory anyway.

    w16 -> cast -> fprop, dgrad               of the cast, only w16 is kept for the backward
    w -> fake_quant(w, f) -> fprop, dgrad     of the quantized weight, only w is kept

A partitioner keeps what a product of the backward reads: of a parameter it would keep a copy as
large as itself, from the forward to the backward. A second quantization costs less than that: it
reads the weight once or twice, where its products read it once for every few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from qgraph import ops
from qgraph.passes.graph.targets import argument_node, aten, root_of
from qgraph.passes.plan import Plan
from qgraph.passes.sites.find import GraphFacts

_CASTS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default)


def recompute_casts(graph: Graph, facts: GraphFacts) -> None:
    """Mark each cast of a parameter to a wider dtype as one to compute again."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _CASTS:
            continue
        (source,) = node.all_input_nodes
        if source.op == "placeholder" and source.name in facts.parameters:
            narrow, wide = (n.meta["val"].dtype.itemsize for n in (source, node))
            if narrow < wide:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def recompute_weights(graph: Graph, plans: Sequence[Plan]) -> None:
    """Mark each quantization of a parameter as one to compute again: from a seed it is the same."""
    for plan in plans:
        for operand in plan.site.operands:
            if operand.kind != "weight":
                continue
            node = root_of(argument_node(plan.site.node, operand.argument))
            if (
                node.target is ops.fake_quant
                and root_of(argument_node(node, 0)).op == "placeholder"
            ):
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
