"""Which products of activations are attention's: scores (qk) and weighted values (pv).

    q k^T  ->  scale, mask, cap  ->  softmax  ->  dropout  ->  p v

The scores are what reaches a softmax through elementwise ops; the weights are what comes from one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace

from torch.fx import Node

from qgraph.compat import meta
from qgraph.passes.graph.places import Layer
from qgraph.passes.graph.targets import GATHERS, PRODUCTS, VIEWS, argument_node, aten
from qgraph.policy import ATTENTION, Policy, decide, products_of

_STEPS = 24  # how far from a product its softmax may be
# By name: a graph that was copied holds copies of the ops in its metadata.
_SOFTMAX = frozenset({"aten._softmax.default", "aten._safe_softmax.default"})
# What may stand between a product and its softmax: scale, mask, bias, cap, dropout, sinks, casts.
_BETWEEN = VIEWS | {
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor,
    aten.div.Scalar, aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.tanh.default, aten.clamp.default, aten.clamp_min.default, aten.maximum.default, aten.amax.default,
    aten.cat.default, aten.constant_pad_nd.default, aten.native_dropout.default,
}  # fmt: skip


def attention_product(node: Node, first: int) -> str:
    """Return "qk", "pv" or "matmul" for a forward product of two activations at `first` and after."""
    for position in (first, first + 1):
        source = argument_node(node, position)
        if _is_softmax(source) or _reaches_softmax(source, lambda n: n.all_input_nodes):
            return "pv"
    return "qk" if _reaches_softmax(node, lambda n: n.users) else "matmul"


def attends(node: Node, first: int) -> bool:
    """Whether a product is attention's, of relative positions too: their scores are picked by number."""
    if attention_product(node, first) != "matmul":
        return True
    return _reaches_softmax(node, lambda n: n.users, _BETWEEN | GATHERS | {aten.gather.default})


def _is_softmax(node: Node) -> bool:
    known = meta.function_of(node) == "softmax"
    return known or not _SOFTMAX.isdisjoint((str(node.target), str(meta.origin(node))))


def _reaches_softmax(
    start: Node,
    neighbours: Callable[[Node], Iterable[Node]],
    between: Container[object] = _BETWEEN,
) -> bool:
    """Whether elementwise ops alone lie between `start` and a softmax."""
    if start.target not in between and start.target not in PRODUCTS:
        return False
    frontier, seen = [start], {start}
    for _ in range(_STEPS):
        following = [n for node in frontier for n in neighbours(node) if n not in seen]
        if any(map(_is_softmax, following)):
            return True
        frontier = [n for n in following if n.target in between]
        seen |= {*following}
    return False


def quantizes_attention(policy: Policy, layer: Layer) -> bool:
    """Whether `policy` quantizes an operand of either product of attention, or of their gradients."""
    return any(
        operand.changes
        for op in ATTENTION
        for role, pairs in products_of(op).items()
        for pair in pairs
        for operand in decide(policy, replace(layer, op=op, role=role, operand_kinds=pair)).operands
    )
