"""Compute each quantization once.

    view(x), view(x), fake_quant(a, f, -1), fake_quant(a, f, -1)  ->  view(x), fake_quant(a, f, -1)

q, k and v read one quantized input; fprop and dgrad read one 16x16-quantized weight. Stochastic
quantizations have their own site number each, so they never meet here.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.passes.graph.edit import erase_unused
from qgraph.passes.graph.quantizer import QUANTIZERS
from qgraph.passes.graph.targets import CONVERT, PERMUTES, RESHAPES
from qgraph.passes.step import Step

_SHARED = (
    QUANTIZERS
    | PERMUTES
    | RESHAPES
    | {ops.hadamard, ops.shared_amax, ops.pad_rows, ops.pad_ends, CONVERT}
)


def share_quantizers(step: Step) -> None:
    """Merge equal views and quantizations, then drop what nothing reads any more."""
    if not any(plan.operands for plan in step.plans):
        return
    graph = step.graph
    seen: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _SHARED:
            continue
        key = (
            node.target,
            _key(node.args),
            _key(tuple(node.kwargs.items())),
            meta.kept_or_not(node),
        )
        if (first := seen.setdefault(key, node)) is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    erase_unused(graph, _SHARED)


def _key(value: object) -> Hashable:
    """Return the arguments as a hashable value; nodes and dynamic sizes by what they are."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, Node):
        return ("node", value.name)
    return str(value) if isinstance(value, torch.SymInt) else (type(value).__name__, value)
