"""Compute each quantization once.

    view(x), view(x), fake_quant(a, f, -1), fake_quant(a, f, -1)  ->  view(x), fake_quant(a, f, -1)

q, k and v read one quantized input; fprop and dgrad read one 16x16-quantized weight. Stochastic
quantizations have their own site number each, so they never meet here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.graph.edit import erase_unused
from qgraph.passes.plan import Plan

aten = torch.ops.aten
_SHARED = frozenset(
    {
        ops.hadamard, ops.fake_quant, ops.shared_amax, ops.pad_rows, ops.pad_ends,
        aten.permute.default, aten.t.default, aten.transpose.int,
        aten.view.default, aten._unsafe_view.default, aten.reshape.default,
        torch.ops.prims.convert_element_type.default,
    }
)  # fmt: skip


def share_quant(graph: Graph, plans: Sequence[Plan]) -> None:
    """Merge equal views and quantizations, then drop what nothing reads any more."""
    if not any(plan.operands for plan in plans):
        return
    seen: dict[Hashable, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _SHARED:
            continue
        key = (
            node.target,
            _key(node.args),
            _key(tuple(node.kwargs.items())),
            node.meta.get("recompute"),
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
