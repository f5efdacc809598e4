"""Compute the wide copies of narrow parameters again in the backward: LayerCast.

    w16 -> cast -> fprop, dgrad               of the cast, only w16 is kept for the backward

A partitioner keeps what a product of the backward reads: of a parameter it would keep a copy as
large as itself, from the forward to the backward.
"""

from __future__ import annotations

from qgraph.compat import meta
from qgraph.passes.graph.targets import CASTS, value_of
from qgraph.passes.step import Step


def recompute_casts(step: Step) -> None:
    """Mark each cast of a parameter to a wider dtype as one to compute again."""
    if step.policy.parameters is None:
        return
    for node in step.graph.nodes:
        if node.op != "call_function" or node.target not in CASTS:
            continue
        (source,) = node.all_input_nodes
        if source.op == "placeholder" and source.name in step.facts.parameters:
            narrow, wide = (value_of(n).dtype.itemsize for n in (source, node))
            if narrow < wide:
                meta.compute_again(node)
