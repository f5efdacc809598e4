"""Take fused attention apart, before its backward is captured, where a policy quantizes its products.

    scaled_dot_product_attention(q, k, v)  ->  attention_in_parts(q, k, v)

Only the call is replaced: masks, scale, grouped heads, dropout and the gradients are torch's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qgraph.passes.graph.places import Layer, frame_module, module_path
from qgraph.passes.step import Step
from qgraph.policy import ATTENTION, Policy, decide, products_of

_FUSED = torch.nn.functional.scaled_dot_product_attention


def take_attention_apart(step: Step) -> None:
    """Replace the fused attention of the modules whose qk or pv the policy quantizes."""
    if not step.policy.quantizes:
        return
    modules, frame = step.facts.modules, frame_module(step.graph, step.facts.modules)
    for node in step.graph.find_nodes(op="call_function", target=_FUSED):
        layer = Layer.at(module_path(node, modules, frame), step.facts.blocks)
        if quantizes_attention(step.policy, layer):
            node.target = attention_in_parts


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
