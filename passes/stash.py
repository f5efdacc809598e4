"""Store what is saved for the backward in few bits.

    forward: x, saved x                forward: q = quantize(x), saved q
    backward: f(x)              ->     backward: f(dequantize(q))

The graphs are those the partitioner cut: it chose what to save, and only how it is stored changes.
Every use in the backward reads the same codes, so nothing is saved twice, and the forward computes
what it did. Source: Dynamic Stashing Quantization, arXiv 2303.05295.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.passes.edit import add_node, aten
from qgraph.passes.processes import Processes
from qgraph.passes.saved import (
    Base,
    SavedTensor,
    ancestry,
    decide_saved,
    find_bases,
    own_format,
)
from qgraph.passes.seeds import own_seed
from qgraph.passes.sites import GraphFacts
from qgraph.passes.targets import sizes_of, value_of
from qgraph.policy import StashRule, Stored

_SHORT = 16
_SITES = 1 << 24  # of saved tensors, away from those of operands


def stash(
    forward: Graph, backward: Graph, results: int, rules: Sequence[StashRule], facts: GraphFacts
) -> list[SavedTensor]:
    """Rewrite both graphs in place as `rules` say; return every saved tensor.

    `forward` gives `results` results, then what it saves; `backward` has a placeholder of the same
    name for each of these.
    """
    holders = {n.name: n for n in backward.find_nodes(op="placeholder")}
    parents = ancestry(forward, facts, _differentiable(forward, backward))
    report: list[SavedTensor] = []
    replaced: dict[Node, list[Node]] = {}
    for index, base in enumerate(find_bases(forward, results, facts)):
        stored, reason = decide_saved(base, rules, parents)
        packed = None
        if stored is not None:
            packed = _pack(forward, base.node, stored, _SITES + index, facts.processes)
            _unpack(backward, base, packed, holders)
            replaced |= dict.fromkeys(base.views, packed.parts)
        report.append(_entry(base, stored, reason, packed))
    _replace_outputs(forward, results, replaced)
    for node in replaced:
        if not node.users and node.target is ops.fake_quant:
            forward.erase_node(node)
    forward.lint()
    backward.lint()
    return report


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """The codes of a tensor in the forward, and how its values are had again."""

    parts: list[Node]
    shape: list[int]  # that it is quantized in
    text: str
    axis: int
    steps: Sequence[tuple[object, list[int]]] = ()  # from that shape to its own


def _pack(
    graph: Graph, node: Node, stored: Stored, site: int, processes: Processes | None
) -> _Packed:
    own = own_format(node)
    if own is not None and own == stored.format:
        return _pack_quantized(graph, node)
    value, text = value_of(node), str(stored.format)
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))
    inner = [sizes_of(node)[axis] for axis in order]  # sizes as they lie in memory
    columns = _columns(inner, stored)
    rows = [prod(inner) // max(columns, 1), columns]
    with graph.inserting_before(node.next):
        laid = node
        if order != [*range(value.dim())]:
            laid = add_node(graph, aten.permute.default, (node, order), like=node)
        laid = add_node(graph, aten.reshape.default, (laid, rows), like=node)
        noise: tuple[Any, ...] = (None, 0)
        if stored.draws:
            noise = (own_seed(graph, processes), site)
        found = add_node(
            graph, ops.quantize, (laid, text, -1, *noise, str(stored.rounding)), like=node
        )
        parts = _pick(graph, found)
    back = [order.index(axis) for axis in range(value.dim())]
    steps = [(aten.reshape.default, inner), (aten.permute.default, back)]
    return _Packed(parts=parts, shape=rows, text=text, axis=-1, steps=steps)


def _pack_quantized(graph: Graph, node: Node) -> _Packed:
    """Take a quantizer apart: its codes are saved, and what they are worth is used as before."""
    arguments: Any = node.args
    source, text, axis, *noise = arguments
    with graph.inserting_before(node):
        found = add_node(graph, ops.quantize, (source, text, axis, *noise[:3]), like=node)
        parts = _pick(graph, found)
        shape = sizes_of(node)
        worth = add_node(
            graph, ops.dequantize, (*parts, text, shape, axis, value_of(node).dtype), like=node
        )
    node.replace_all_uses_with(worth, delete_user_cb=lambda user: user.op != "output")
    return _Packed(parts=parts, shape=shape, text=text, axis=axis)


def _unpack(graph: Graph, base: Base, packed: _Packed, holders: Mapping[str, Node]) -> None:
    """Give the backward the codes, and their values just before they are first used."""
    names = [node for node in base.views if node.name in holders]
    first = holders[names[0].name]
    parts = []
    with graph.inserting_before(first):
        for part in packed.parts:
            parts.append(graph.placeholder(part.name))
            parts[-1].meta |= {key: part.meta[key] for key in ("val",)}
    order = {node: i for i, node in enumerate(graph.nodes)}
    users = [user for node in names for user in holders[node.name].users]
    like = min(users, key=order.__getitem__)
    with graph.inserting_before(like):
        dtype = value_of(base.node).dtype
        value = add_node(
            graph,
            ops.dequantize,
            (*parts, packed.text, packed.shape, packed.axis, dtype),
            like=like,
        )
        for target, argument in packed.steps:
            value = add_node(graph, target, (value, argument), like=like)
        for node in names:
            shown = value
            for view in base.views[node]:
                shown = add_node(graph, view.target, (shown, *view.args[1:]), like=like)
            holders[node.name].replace_all_uses_with(shown)
    for node in names:
        graph.erase_node(holders[node.name])


def _replace_outputs(graph: Graph, results: int, replaced: dict[Node, list[Node]]) -> None:
    """Save codes in place of tensors: of several views of one tensor, once."""
    (output,) = graph.find_nodes(op="output")
    values: Any = output.args[0]
    saved: list[Any] = []
    for value in values[results:]:
        parts = replaced.get(value, [value]) if isinstance(value, Node) else [value]
        saved += [part for part in parts if part not in saved or not isinstance(part, Node)]
    output.args = ((*values[:results], *saved),)
    described = output.meta.get("desc")
    if described is not None and len(described) > results:
        kind = type(described[results])
        output.meta["desc"] = [*described[:results], *map(kind, range(len(saved)))]


def _columns(inner: list[int], stored: Stored) -> int:
    """Return how many elements make a row: the last axis, or so many that whole blocks fit."""
    assert stored.format is not None, "what is packed has a format"
    along = stored.format.block.along or _SHORT
    columns = 1
    for size in reversed(inner):
        columns *= size
        if columns % along == 0:
            return columns
    return inner[-1]


def _pick(graph: Graph, node: Node) -> list[Node]:
    """Return the three results of `quantize`, under names that no other graph uses."""
    parts = []
    for index, word in enumerate(("codes", "scales", "scale")):
        name = f"stashed_{node.name}_{word}"
        parts.append(graph.create_node("call_function", operator.getitem, (node, index), name=name))
        parts[-1].meta = {**node.meta, "val": node.meta["val"][index]}
    return parts


def _differentiable(forward: Graph, backward: Graph) -> set[str]:
    """Return the names of the forward's inputs that the backward gives a gradient of."""
    (output,) = backward.find_nodes(op="output")
    gradients: Any = output.args[0]
    holders = forward.find_nodes(op="placeholder")
    return {h.name for h, g in zip(holders, gradients, strict=False) if isinstance(g, Node)}


def _entry(base: Base, stored: Stored | None, reason: str, packed: _Packed | None) -> SavedTensor:
    value = value_of(base.node)
    size = prod(sizes_of(base.node)) * value.dtype.itemsize
    parts: list[Tensor] = [part.meta["val"] for part in packed.parts] if packed else []
    own = own_format(base.node)
    return SavedTensor(
        module=base.module,
        op=base.op,
        shape=tuple(sizes_of(base.node)),
        dtype=str(value.dtype)[6:],
        bytes=size,
        stored=sum(prod(p.shape) * p.dtype.itemsize for p in parts) if packed else size,
        format=str(stored.format) if stored else "high",
        rounding=str(stored.rounding) if stored else "nearest",
        exact=stored is not None and own == stored.format,
        reason=reason,
    )
