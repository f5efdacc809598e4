"""Quantize weights again in the backward: their source lies in memory anyway.

    w -> fake_quant(w, f) -> fprop, dgrad     of the quantized weight, only w is kept

A second quantization costs less than keeping the first: it reads the weight once or twice, where its
products read it once for every few tokens.
"""

from __future__ import annotations

from qgraph.compat import meta
from qgraph.passes.graph.quantizer import QUANTIZERS
from qgraph.passes.graph.targets import argument_node, root_of
from qgraph.passes.step import Step


def recompute_weights(step: Step) -> None:
    """Mark each quantization of a parameter as one to compute again: from a seed it is the same."""
    for plan in step.plans:
        for operand in plan.site.operands:
            if operand.kind != "weight":
                continue
            node = root_of(argument_node(plan.site.node, operand.argument))
            if node.target in QUANTIZERS and root_of(argument_node(node, 0)).op == "placeholder":
                meta.compute_again(node)
