"""Which aten ops are matrix products, which are views, and what the products qgraph leaves alone cost."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta, symbolic

aten = torch.ops.aten

# Products with two plain operands: the position of the left one; the right one follows.
# The left is [..., M, K] and sums over axis -1, the right is [..., K, N] and sums over axis -2.
PRODUCTS: dict[object, int] = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
    aten._grouped_mm.default: 0,
    ops.grouped_mm: 0,
}

# Ops that only show the same numbers in another layout, shape or dtype, or some of them.
Ops = frozenset[object]
PERMUTES: Ops = frozenset({aten.permute.default, aten.t.default, aten.transpose.int})
RESHAPES: Ops = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
ALIASES: Ops = frozenset({aten.alias.default, aten.detach.default})
CONVERT = torch.ops.prims.convert_element_type.default
CASTS: Ops = frozenset({aten._to_copy.default, CONVERT})
_SPREADS = {
    aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip
_PARTS = {
    aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default,
    operator.getitem,
}  # fmt: skip
# Views of all of a tensor: what lies in memory is the tensor below.
LAYOUTS: Ops = PERMUTES | RESHAPES | ALIASES | _SPREADS
VIEWS: Ops = LAYOUTS | CASTS | _PARTS | {aten.squeeze.default, aten.clone.default}
# Picking rows by number: the weights of the experts that a token goes to.
GATHERS: frozenset[object] = frozenset({aten.index.Tensor, aten.index_select.default})


def is_grouped(node: Node) -> bool:
    """Whether `node` multiplies groups of rows by a matrix each, as experts do."""
    return node.target in (aten._grouped_mm.default, ops.grouped_mm)


def is_convolution(node: Node) -> bool:
    """Whether `node` is a convolution or its backward."""
    return node.target in (aten.convolution.default, aten.convolution_backward.default)


def root_of(source: Node) -> Node:
    """Follow views and casts back to where the numbers come from."""
    while source.op == "call_function" and source.target in VIEWS:
        source = source.all_input_nodes[0]
    return source


def argument_node(node: Node, position: int) -> Node:
    """Return the node at `position` of a product's arguments."""
    found = node.args[position]
    assert isinstance(found, Node), "a product's operands are nodes"
    return found


def value_of(node: Node) -> Tensor:
    """Return the fake tensor that stands for what `node` computes; of several results, the first."""
    value = meta.value(node)
    if isinstance(value, (tuple, list)):
        value = next((item for item in value if item is not None), None)
    assert isinstance(value, Tensor), f"{node.name} has no tensor value"
    return value


def size_hint(size: Any) -> int:
    """Return a size as an int; of a dynamic one, the size seen while capturing."""
    return symbolic.hint(size) or 0


def sizes_of(node: Node) -> list[int]:
    """Return the sizes of what `node` computes, dynamic ones by their hints."""
    return [size_hint(size) for size in value_of(node).shape]


Described = list[tuple[str, int, str]]  # op, FLOPs, why it is not quantized


def _sdpa(node: Node) -> Described:
    backward = "backward" in str(node.target)
    query, key = (sizes_of(argument_node(node, i + backward)) for i in (0, 1))
    product = 2 * prod(query) * key[-2]  # one of: scores, weighted values, and their gradients
    return [("sdpa", product * (5 if backward else 2), FUSED)]


def _hidden(node: Node) -> Described:
    return [("matmul", 0, f"{node.target} holds products qgraph does not look into")]


def _vector(node: Node) -> Described:
    largest = max((prod(sizes_of(source)) for source in node.all_input_nodes), default=0)
    return [("matmul", 2 * largest, "a product with a vector is not quantized")]


FUSED = "fused attention: a rule on qk or pv would take it apart"

# Products in other forms, by the start of the op's name: what to say about each.
ELSEWHERE: tuple[tuple[str, Callable[[Node], Described]], ...] = (
    ("aten._scaled_dot_product", _sdpa),
    ("aten._flash_attention", _hidden),
    ("aten._efficient_attention", _hidden),
    ("flex_attention", _hidden),
    ("aten.mkldnn_rnn_layer", _hidden),
    ("aten._transformer_encoder_layer_fwd", _hidden),
    ("aten._native_multi_head_attention", _hidden),
    ("aten._scaled_mm", _hidden),
    ("aten._scaled_grouped_mm", _hidden),
    ("aten._int_mm", _hidden),
    ("aten.addbmm", _hidden),
    ("aten.mv", _vector),
    ("aten.addmv", _vector),
    ("aten.dot", _vector),
    ("aten.vdot", _vector),
    ("aten._trilinear", _hidden),
    ("aten._thnn_fused", _hidden),
    ("aten._cdist", _hidden),
    ("cond", _hidden),
    ("while_loop", _hidden),
    ("scan", _hidden),
    ("map_impl", _hidden),
)

# How torch's dispatcher calls products, whole ones too that a graph never holds: `aten::linear` is taken
# apart on the way into one. By these names the audit knows a product that runs outside of graphs.
_WHOLE = {
    f"aten::{name}"
    for name in (
        "linear", "matmul", "einsum", "tensordot", "inner", "linalg_multi_dot", "chain_matmul",
        "bilinear", "cdist", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu",
        "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "mkldnn_linear",
    )
}  # fmt: skip
_NAMES = _WHOLE | {str(op).replace(".", "::", 1).rpartition(".")[0] for op in PRODUCTS}
_STARTS = ("aten::conv", "aten::_conv", "aten::mkldnn_conv", "aten::_scaled_dot", "aten::_cdist")


def names_product(name: str) -> bool:
    """Whether the dispatcher's `name`, such as `aten::mm`, is that of a product."""
    listed = any(
        name == start.replace(".", "::", 1) for start, _ in ELSEWHERE if start.startswith("aten.")
    )
    return name in _NAMES or listed or name.startswith(_STARTS)
