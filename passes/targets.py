"""Which aten ops are matrix products, which are views, and what the products qgraph leaves alone cost."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

# Products with two plain operands: the position of the left one; the right one follows.
# The left is [..., M, K] and sums over axis -1, the right is [..., K, N] and sums over axis -2.
PRODUCTS: dict[object, int] = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}

# Ops that only show the same numbers in another shape, layout or dtype.
VIEWS: frozenset[object] = frozenset(
    {
        aten.permute.default, aten.t.default, aten.transpose.int, aten.view.default,
        aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default,
        aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.slice.Tensor,
        aten.select.int, aten.clone.default, aten.alias.default, aten.detach.default,
        aten._to_copy.default, torch.ops.prims.convert_element_type.default,
        aten.split.Tensor, aten.split_with_sizes.default, operator.getitem,
    }
)  # fmt: skip


def argument_node(node: Node, position: int) -> Node:
    """Return the node at `position` of a product's arguments."""
    found = node.args[position]
    assert isinstance(found, Node), "a product's operands are nodes"
    return found


def value_of(node: Node) -> Tensor:
    """Return the fake tensor that stands for what `node` computes."""
    value = node.meta.get("val")
    assert isinstance(value, Tensor), f"{node.name} has no tensor value"
    return value


def size_hint(size: Any) -> int:
    """Return a size as an int; of a dynamic one, the size seen while capturing."""
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return int(hint) if hint is not None else 0


def _shape(node: object) -> list[int]:
    assert isinstance(node, Node), "an operand is a node"
    return [size_hint(size) for size in value_of(node).shape]


def _conv(node: Node) -> list[tuple[str, str, int, str]]:
    if "backward" in str(node.target):
        gradient, weight, mask = _shape(node.args[0]), _shape(node.args[2]), node.args[-1]
        flops = 2 * prod(gradient) * prod(weight[1:])
        roles = [role for role, on in zip(("dgrad", "wgrad"), mask, strict=False) if on]  # type: ignore[arg-type]
        return [("conv", role, flops, _CONV) for role in roles]
    output = _shape(node)
    return [("conv", "fprop", 2 * prod(output) * prod(_shape(node.args[1])[1:]), _CONV)]


def _sdpa(node: Node) -> list[tuple[str, str, int, str]]:
    backward = "backward" in str(node.target)
    query, key = _shape(node.args[1 if backward else 0]), _shape(node.args[2 if backward else 1])
    product = 2 * prod(query) * key[-2]  # one of: scores, weighted values, and their gradients
    return [("sdpa", "", product * (5 if backward else 2), _SDPA)]


def _experts(node: Node) -> list[tuple[str, str, int, str]]:
    if "backward" in str(node.target):
        rows, weight = _shape(node.args[0]), _shape(node.args[2])
        flops = 2 * prod(rows) * (weight[-1] if weight[-1] != rows[-1] else weight[-2])
        return [("experts", role, flops, _EXPERTS) for role in ("dgrad", "wgrad")]
    rows, weight = _shape(node.args[0]), _shape(node.args[1])
    return [("experts", "", 2 * prod(rows) * weight[-1], _EXPERTS)]


def _hidden(node: Node) -> list[tuple[str, str, int, str]]:
    return [("matmul", "", 0, f"{node.target} holds products qgraph does not look into")]


_CONV = "convolutions are not quantized yet"
_SDPA = "fused attention is not quantized yet"
_EXPERTS = "grouped expert products are not quantized yet"

# Products in other forms, by the start of the op's name: what to say about each.
ELSEWHERE = (
    ("aten.convolution", _conv),
    ("aten._scaled_dot_product", _sdpa),
    ("aten._grouped_mm", _experts),
    ("transformers.grouped_mm_fallback", _experts),
    ("flex_attention", _hidden),
    ("aten.mkldnn_rnn_layer", _hidden),
    ("aten._scaled_mm", _hidden),
    ("aten._int_mm", _hidden),
    ("aten.addbmm", _hidden),
    ("aten.mv", _hidden),
    ("aten.addmv", _hidden),
    ("aten._thnn_fused", _hidden),
    ("cond", _hidden),
    ("while_loop", _hidden),
    ("scan", _hidden),
    ("map_impl", _hidden),
)
