"""Put an op on an operand of a product: the one way the passes edit a graph."""

from __future__ import annotations

from collections.abc import Callable, Container
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from qgraph.compat import meta
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.targets import argument_node, value_of

aten = torch.ops.aten

Call = Callable[[Node, int], Node]


def wrap_operand(
    graph: Graph,
    product: Node,
    operand: Operand,
    call: Call,
    *,
    flat: bool = False,
    plane: bool = False,
) -> Node:
    """Replace an operand x of `product` by permute(call(base, axis)), x being permute(base).

    Working below the permutes lets two products that read one tensor in two layouts share
    the work. `call` adds a node that acts along `axis` (negative) of `base`; the new node is returned.
    With `plane` it acts on both axes of the matrix, which are then the last two of `base`. An operand
    with a layout of its own is brought into that first. `flat` takes batch and positions
    of a convolution's operand for one axis: [channels, positions * batch].
    """
    base, order = below_permutes(argument_node(product, operand.argument))
    with graph.inserting_before(product):
        if flat:
            return _wrap_flat(graph, product, operand, call, base, order)
        layout = _layout(operand, order, plane=plane)
        if layout != [*range(len(order))]:
            base = add_node(graph, aten.permute.default, (base, layout), like=product)
            order = [layout.index(axis) for axis in order]
        view = new = call(base, order[operand.axis] - len(order))
        if order != [*range(len(order))]:
            view = add_node(graph, aten.permute.default, (new, order), like=product)
    product.update_arg(operand.argument, view)
    return new


def _layout(operand: Operand, order: list[int], *, plane: bool) -> list[int]:
    """Return the axes of the base in the order in which a call is to see them.

    They stay as they are if the call finds its axes among the last two. Else batch axes come
    first, and those of the matrix as they stood, so that every product of one tensor sees one layout.
    """
    if operand.layout:
        return [order[axis] for axis in operand.layout]
    rank = len(order)
    axes = [order[axis] for axis in ((-2, -1) if plane else (operand.axis,))]
    if all(axis >= rank - 2 for axis in axes):
        return [*range(rank)]
    matrix = sorted(order[-2:])
    return [axis for axis in range(rank) if axis not in matrix] + matrix


def _wrap_flat(
    graph: Graph, product: Node, operand: Operand, call: Call, base: Node, order: list[int]
) -> Node:
    rank = len(order)
    layout = (1, *range(2, rank), 0)
    rows = add_node(graph, aten.permute.default, (base, [order[i] for i in layout]), like=product)
    shape = [*value_of(rows).shape]
    rows = add_node(graph, aten.reshape.default, (rows, [shape[0], -1]), like=product)
    new = call(rows, -1)
    view = add_node(graph, aten.reshape.default, (new, shape), like=product)
    back = [layout.index(axis) for axis in range(rank)]
    view = add_node(graph, aten.permute.default, (view, back), like=product)
    product.update_arg(operand.argument, view)
    return new


def below_permutes(node: Node) -> tuple[Node, list[int]]:
    """Return (base, order) with node = base.permute(order), following permutes only."""
    rank = value_of(node).dim()
    order = list(range(rank))
    while node.op == "call_function":
        arguments: Any = node.args
        if node.target is aten.permute.default:
            step = [axis % rank for axis in arguments[1]]
        elif node.target is aten.t.default and rank == 2:
            step = [1, 0]
        elif node.target is aten.transpose.int:
            first, second = arguments[1] % rank, arguments[2] % rank
            step = list(range(rank))
            step[first], step[second] = second, first
        else:
            break
        order = [step[axis] for axis in order]
        node = argument_node(node, 0)
    return node, order


def add_node(
    graph: Graph, target: object, args: tuple[object, ...], like: Node, **options: Any
) -> Node:
    """Add a call at the insertion point, with its fake value, belonging where `like` belongs."""
    name = str(target).split(".")[1]  # aten.permute.default -> permute
    node = graph.create_node("call_function", target, args, options, name=name)  # type: ignore[arg-type]
    meta.inherit(node, like)
    values = [meta.value(arg) if isinstance(arg, Node) else arg for arg in args]
    with meta.fake_mode(graph):
        meta.set_value(node, target(*values, **options))  # type: ignore[operator]
    return node


def erase_unused(graph: Graph, targets: Container[object]) -> None:
    """Erase calls of these targets that nothing reads."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in targets and not node.users:
            graph.erase_node(node)


def add_item(graph: Graph, stored: Node, index: int, like: Node) -> Node:
    """Add the result of that index of `stored`, a node with several, in the place of `like`."""
    node = graph.call_function(getitem, (stored, index))
    meta.copy_but_value(node, like, meta.value(stored)[index])
    return node


def items_of(node: Node, count: int) -> list[list[Node]]:
    """Return, for each of `count` results of `node`, the nodes that take it out."""
    found: list[list[Node]] = [[] for _ in range(count)]
    for user in node.users:
        assert user.target is getitem, "several results are taken apart by getitem"
        found[int(user.args[1])].append(user)  # type: ignore[arg-type]
    return found
