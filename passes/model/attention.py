"""Take fused attention apart, before its backward is captured, where a policy quantizes its products.

    scaled_dot_product_attention(q, k, v)  ->  attention_in_parts(q, k, v)
    multi_head_attention_forward(...)      ->  heads_in_parts(...)

Only the call is replaced: masks, scale, grouped heads, dropout and the gradients are torch's own. Dynamo
keeps the second as one call, with projections and fused attention in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qgraph.passes.graph.places import Layer, frame_module, module_path
from qgraph.passes.sites.attention import quantizes_attention
from qgraph.passes.step import Step

_FUSED = torch.nn.functional.scaled_dot_product_attention
_HEADS = torch.nn.functional.multi_head_attention_forward


def take_attention_apart(step: Step) -> None:
    """Replace the fused attention of the modules whose qk or pv the policy quantizes."""
    if not step.policy.quantizes:
        return
    modules, frame = step.facts.modules, frame_module(step.graph, step.facts.modules)
    for node in step.graph.nodes:
        if node.op != "call_function" or node.target not in _APART:
            continue
        layer = Layer.at(module_path(node, modules, frame), step.facts.blocks)
        if quantizes_attention(step.policy, layer):
            node.target = _APART[node.target]


def attention_in_parts(*args: Any, **kwargs: Any) -> Tensor:
    """Compute attention as two products and a softmax, in the inputs' dtype; arguments as torch's."""
    with _in_parts():
        return _FUSED(*args, **kwargs)


def heads_in_parts(*args: Any, **kwargs: Any) -> Any:
    """Compute what nn.MultiheadAttention does, its attention in parts; arguments and results as torch's."""
    with _in_parts():
        return _HEADS(*args, **kwargs)


_APART: dict[object, Callable[..., Any]] = {
    _FUSED: attention_in_parts,
    torch.ops.aten.scaled_dot_product_attention.default: attention_in_parts,
    _HEADS: heads_in_parts,
}


@contextmanager
def _in_parts() -> Iterator[None]:
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
