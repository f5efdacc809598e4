"""Cast stored parameters anew in the backward.

    w16 -> cast -> fprop, dgrad        of the cast, only w16 is kept for the backward

A partitioner keeps what a product of the backward reads; of a parameter that lies in memory anyway
it would keep the wide copy, and storing it narrow would save nothing.
"""

from __future__ import annotations

import torch
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from qgraph.passes.sites import GraphFacts
from qgraph.passes.targets import aten

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
