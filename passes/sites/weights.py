"""Which operands are weights: parameters and frozen buffers, and what is computed from them and from no data.

    w,  w * mask,  scale * codes,  w + b @ a        a weight
    b @ a                                           a product that makes one
    linear(places)                                  an activation, though it takes no data

A product of what takes no data makes a weight if its result becomes one: the operand of a product with
data. Layers of torch's own and attention are told apart: what they give is an activation, whatever from,
unless it is brought into the shape of a weight, as a hypernetwork does, or is an update of a stored one.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.utils.parametrize import ParametrizationList

from qgraph.compat import descriptions, meta
from qgraph.passes.graph.targets import (
    GATHERS,
    PRODUCTS,
    RESHAPES,
    VIEWS,
    argument_node,
    aten,
    is_convolution,
    is_grouped,
    root_of,
    sizes_of,
    value_of,
)
from qgraph.passes.sites.attention import attends

MAKES = "it makes a weight: what a weight is computed with stays high"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a graph: parameters as they are stored, what is computed, and the products doing it.

    A buffer that the graph does not write, and that holds a matrix, counts as computed; `learned` is what
    is computed from parameters, with or without buffers.
    """

    stored: frozenset[Node]
    made: frozenset[Node]
    learned: frozenset[Node]
    makers: frozenset[Node]

    def stored_below(self, source: Node) -> Node | None:
        """Return the parameter an operand shows, also one that rows or experts are picked from."""
        return _below(source, self.stored)

    def made_below(self, node: Node, source: Node) -> Node | None:
        """Return the computed weight an operand of `node` shows, also one that experts are picked from.

        Attention multiplies learned ones only: a buffer there is what was seen before.
        """
        found = _below(source, self.made)
        known = found is None or found in self.learned or not is_attention(node)
        return found if known else None


def find_weights(
    graph: Graph, parameters: Container[str], buffers: Container[str], late: Container[Node]
) -> Weights:
    """Return the weights of `graph`, whose placeholders of these names hold parameters and buffers.

    `late` are the nodes that depend on a tangent.
    """
    holders = graph.find_nodes(op="placeholder")
    stored = frozenset(node for node in holders if node.name in parameters)
    kept = {node for node in holders if node.name in buffers}
    fixed: set[Node] = {*stored, *kept}
    makers = _makers(graph, _without_data(graph, fixed), fixed.copy(), late)
    made = {*stored, *(node for node in kept - _written(graph) if _is_matrix(node))}
    learned = {*stored}
    for node in graph.nodes:
        sources, product = node.all_input_nodes, node.target in PRODUCTS and node not in makers
        if _is_constant(node) or (
            node.op == "call_function" and not product and all(s in fixed for s in sources)
        ):
            fixed.add(node)
            for found in (made, learned):
                if any(source in found for source in sources):
                    found.add(node)
    return Weights(
        stored=stored,
        made=frozenset(made),
        learned=frozenset(learned),
        makers=frozenset(makers),
    )


def _without_data(graph: Graph, state: set[Node]) -> set[Node]:
    """Return what depends on `state` and constants alone, through products too."""
    found = set(state)
    for node in graph.nodes:
        computed = node.op == "call_function" and all(s in found for s in node.all_input_nodes)
        if computed or _is_constant(node):
            found.add(node)
    return found


def _is_constant(node: Node) -> bool:
    """Whether a node is a constant of the graph, or a size: data's size is no data."""
    value = meta.value(node)
    if node.op == "get_attr":
        return isinstance(value, Tensor)
    return (
        node.op != "output" and value is not None and not isinstance(value, (Tensor, tuple, list))
    )


def _makers(
    graph: Graph, free: set[Node], stored: Container[Node], late: Container[Node]
) -> set[Node]:
    """Return the products, of `free` operands, whose result becomes a weight.

    What a layer gives becomes one only in another shape, with a stored one, or inside of what makes one.
    """
    todo = [
        (source, False)
        for node in graph.nodes
        if node.op == "call_function" and node not in late and meta.half(node) != "backward"
        for source in _weight_places(node, free)
    ]
    seen, makers = set(todo), set[Node]()
    while todo:
        node, sure = todo.pop()
        if node.target in PRODUCTS:
            if _is_layer(node) and not sure:
                continue
            makers.add(node)
        for source in node.all_input_nodes:
            shaped = _is_folded(node, source) or _joins(node, source, stored)
            above = (source, sure or node in makers or shaped)
            if source in free and above not in seen:
                seen.add(above)
                todo.append(above)
    return makers


def _is_folded(node: Node, source: Node) -> bool:
    """Whether `node` shows `source` with a last axis of another size: features become a matrix."""
    return node.target in RESHAPES and value_of(node).shape[-1:] != value_of(source).shape[-1:]


def _joins(node: Node, source: Node, stored: Container[Node]) -> bool:
    """Whether `node` puts `source` together with a matrix that is stored, as an update of it."""
    others = [root_of(other) for other in node.all_input_nodes if other is not source]
    return node.target not in PRODUCTS and any(o in stored and _is_matrix(o) for o in others)


def _weight_places(node: Node, free: set[Node]) -> list[Node]:
    """Return what the operand of a product with data shows, if it is `free` and a weight may stand there."""
    if is_convolution(node) or is_grouped(node):
        places = [(1, 0)]
    elif node.target in PRODUCTS:
        first = PRODUCTS[node.target]
        places = [(first, first + 1), (first + 1, first)]
    else:
        return []
    pairs = ((argument_node(node, one), argument_node(node, other)) for one, other in places)
    shown = [one if one in free else _below(one, free) for one, other in pairs if other not in free]
    found = [node for node in shown if node is not None]
    return [] if found and is_attention(node) else found


def is_attention(node: Node) -> bool:
    """Whether a product is one of attention, for each picture and head of a batch."""
    batched = node.target in (aten.bmm.default, aten.baddbmm.default)
    return batched and attends(node, PRODUCTS[node.target])


def _is_layer(node: Node) -> bool:
    """Whether a product is what torch's own linear layer computes, and none that parametrizes a weight."""
    classes = [value[1] for value in meta.modules(node).values() if isinstance(value[1], type)]
    if any(issubclass(cls, ParametrizationList) for cls in classes):
        return False
    forward: Any = getattr(classes[-1], "forward", None) if classes else None
    return forward is nn.Linear.forward


def _written(graph: Graph) -> set[Node]:
    """Return the placeholders that the graph writes into."""
    (output,) = graph.find_nodes(op="output")
    written = descriptions.written_inputs(meta.description(output) or ())
    copied = {n.args[0] for n in graph.find_nodes(op="call_function", target=aten.copy_.default)}
    return {
        node
        for node in graph.find_nodes(op="placeholder")
        if node in copied
        or (meta.description(node) is not None and meta.description(node) in written)
    }


def _is_matrix(node: Node) -> bool:
    sizes = sizes_of(node)
    return prod(sizes) > max(sizes, default=1)


def _below(source: Node, weights: Container[Node]) -> Node | None:
    """Return the furthest of `weights` below what shows an operand, or picks parts of it."""
    found = None
    while True:
        found = source if source in weights else found
        shows = source.op == "call_function" and (
            source.target in VIEWS or (source.target in GATHERS and value_of(source).dim() > 2)
        )
        if not shows:
            return found
        source = source.all_input_nodes[0]
