"""Multiply NVFP4 codes on GPUs whose matrix units take them: part of the target `native`.

    mm(fake_quant(x, f, -1), permute(fake_quant(w, g, -2)))
        ->  nvfp4_mm(*pack(x, row=f), *pack(w, column=g))

One `pack` reads a tensor once and stores both orientations that products read, in the forward or
the backward, rotated or not. What cannot be multiplied so stays emulated, and its plan says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.ops import at_hand, choose
from qgraph.passes.graph.edit import add_item, add_node, erase_unused
from qgraph.passes.graph.quantizer import LEFT_OVER, Quantizer, quantizer_of
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.plan import Plan
from qgraph.passes.step import Step
from qgraph.passes.work import multiply_of

aten = torch.ops.aten
_POINTS = 16


@dataclass(frozen=True, kw_only=True)
class Side:
    """One operand as it is packed: quantized along `axis` of `base`, after a rotation by `signs`."""

    base: Node
    axis: int  # -1 or -2
    format: str
    signs: str
    output: str
    seed: Node | None
    site: int


def lower_nvfp4(step: Step) -> None:
    """Replace NVFP4 products on a GPU by products of codes; the plans say what each became."""
    if step.target == "emulate":
        return
    graph = step.graph
    chosen: list[tuple[Node, Side, Side]] = []
    lowerings: list[str] = []
    for plan in step.plans:
        lowerings.append(plan.lowering)
        if _multiplies_codes(plan):
            first, second = (_side(plan.site.node, operand) for operand in plan.site.operands)
            if first is not None and second is not None:
                chosen.append((plan.site.node, first, second))
                lowerings[-1] = "native nvfp4"
            else:
                lowerings[-1] = f"emulated: {_OTHERWISE}"
    packed, made = _pack(graph, chosen), dict[Node, Node]()
    for product, *both in chosen:
        bias = argument_node(product, 0) if product.target is aten.addmm.default else None
        with graph.inserting_before(product):
            parts = [part for side in both for part in packed[side]]
            args = (*parts, bias, value_of(product).dtype)
            made[product] = new = add_node(graph, ops.nvfp4_mm, args, like=product)
        product.replace_all_uses_with(new)
        graph.erase_node(product)
    step.plans = tuple(
        replace(plan, lowering=lowering, lowered=made.get(plan.site.node))
        for plan, lowering in zip(step.plans, lowerings, strict=True)
    )
    erase_unused(graph, LEFT_OVER)


_OTHERWISE = "no native product of these roundings or rotations"


def _multiplies_codes(plan: Plan) -> bool:
    """Whether a product is one of NVFP4 codes; others, and why they are not, are for `lower_native`."""
    if plan.status != "quantized":
        return False
    machine = at_hand(value_of(plan.site.node).device.type)
    return choose(multiply_of(plan), machine).kernel.name == "nvfp4"


def _side(product: Node, operand: Any) -> Side | None:
    """Return how an operand of a product is quantized, or None where `pack` does not do it."""
    node, axis = quantizer_of(argument_node(product, operand.argument), operand.axis)
    found = Quantizer.read(node)
    if found is None or (found.signs and len(found.signs) != _POINTS):
        return None
    if found.rounding is not None or found.amax is not None or value_of(found.source).dim() != 2:
        return None
    return Side(
        base=found.source,
        axis=axis,
        format=found.format,
        signs=found.signs,
        output=found.output,
        seed=found.seed,
        site=found.site,
    )


def _pack(
    graph: Graph, products: Sequence[tuple[Node, Side, Side]]
) -> dict[Side, tuple[Node, Node, Node]]:
    """Add a `pack` for each row and column side of one tensor that go together."""
    first: dict[Side, Node] = {}
    for product, *sides in products:
        for side in sides:
            first.setdefault(side, product)
    found: dict[Side, tuple[Node, Node, Node]] = {}
    for side in first:
        if side in found:
            continue
        other = next((o for o in first if o not in found and _fits(side, o)), None)
        pair = {s.axis: s for s in (side, other) if s is not None}
        like = first[side]
        with graph.inserting_before(like):
            node = add_node(graph, ops.pack, _arguments(pair), like=like)
            for axis, one in pair.items():
                start = 0 if axis == -1 else 3
                parts = [add_item(graph, node, start + i, like) for i in range(3)]
                found[one] = (parts[0], parts[1], parts[2])
    return found


def _fits(side: Side, other: Side) -> bool:
    """Whether one read of a tensor can give both sides."""
    if side.base is not other.base or side.axis == other.axis:
        return False
    seeds = {s.seed for s in (side, other) if s.seed is not None}
    turned = {(s.signs, s.output) for s in (side, other) if s.signs}
    return side.format == other.format and len(seeds) <= 1 and len(turned) <= 1


def _arguments(pair: dict[int, Side]) -> tuple[Any, ...]:
    any_side = next(iter(pair.values()))
    turned = next((s for s in pair.values() if s.signs), any_side)
    arguments: list[Any] = [any_side.base]
    for axis in (-1, -2):
        side = pair.get(axis)
        arguments += (
            [side.format, bool(side.signs), side.seed is not None, side.site]
            if side
            else ["", False, False, 0]
        )
    seed = next((s.seed for s in pair.values() if s.seed is not None), None)
    return (*arguments, turned.signs, turned.output, seed)
