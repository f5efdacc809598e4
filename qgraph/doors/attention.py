"""Taking fused attention apart, before its backward is captured, where a policy quantizes its products.

Only the call is replaced: masks, scale, grouped heads, dropout and the gradients are torch's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel

from qgraph.doors.facts import Outline
from qgraph.models.layer import Layer
from qgraph.passes import frame_module, module_path, stacks_of
from qgraph.policy import ATTENTION, Policy, decide, products_of

_FUSED = torch.nn.functional.scaled_dot_product_attention


def take_attention_apart(module: GraphModule, policy: Policy, outline: Outline | None) -> None:
    """Replace, in place, the fused attention of the modules whose qk or pv `policy` quantizes."""
    if not policy.quantizes:
        return
    modules = outline.modules if outline else {}
    graphs = [part for part in module.modules() if isinstance(part, GraphModule)]
    calls = [
        (graph, node, module_path(node, modules, frame_module(graph.graph, modules)))
        for graph in graphs
        for node in graph.graph.find_nodes(op="call_function", target=_FUSED)
    ]
    blocks = outline.blocks if outline else stacks_of(path for _, _, path in calls)
    for graph, node, path in calls:
        if quantizes_attention(policy, Layer.at(path, blocks)):
            node.target = attention_in_parts
            graph.recompile()


def attention_in_parts(*args: Any, **kwargs: Any) -> Tensor:
    """Compute attention as two products and a softmax, in the inputs' dtype; arguments as torch's."""
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return _FUSED(*args, **kwargs)
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)


def quantizes_attention(policy: Policy, layer: Layer) -> bool:
    """Whether `policy` quantizes an operand of either product of attention, or of their gradients."""
    return any(
        operand.changes
        for op in ATTENTION
        for role, pairs in products_of(op).items()
        for pair in pairs
        for operand in decide(policy, replace(layer, op=op, role=role, operand_kinds=pair)).operands
    )
