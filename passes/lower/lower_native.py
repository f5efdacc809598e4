"""Multiply codes where the device can: the target `native`.

    mm(fake_quant(x, f, -1), fake_quant(y, g, -2))
        ->  scaled_mm(*quantize(x, f, -1), *quantize(y, g, -2))

One quantization still serves every product that reads it; on a GPU one kernel stores the codes that
products read along either axis, `quantize_both`. What has no native product stays
emulated, and its plan says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.formats import parse_format
from qgraph.ops import Quantize, at_hand, choose
from qgraph.passes.graph.edit import add_item, add_node, erase_unused
from qgraph.passes.graph.quantizer import LEFT_OVER, Quantizer, quantizer_of
from qgraph.passes.graph.targets import argument_node, value_of
from qgraph.passes.plan import Plan
from qgraph.passes.step import Step
from qgraph.passes.work import multiply_of

aten = torch.ops.aten
_Codes = dict[tuple[object, ...], tuple[Node, Node]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an operand's codes are made of: `base`, quantized along `axis`, -1 or -2."""

    base: Node
    axis: int
    format: str
    recompute: object  # what the partitioner was told of the quantization, if anything


def lower_native(step: Step) -> None:
    """Replace products by native ones where there are any; the plans say what each became."""
    if step.target == "emulate":
        return
    always = step.target == "native-always"
    kinds = [
        ("", []) if plan.status != "quantized" or plan.lowering else _kind(plan, always)
        for plan in step.plans
    ]
    both = _read_both_ways([source for _, sources in kinds for source in sources])
    made: _Codes = {}
    moved: dict[Node, Node] = {}  # what stands for a product that another one reads
    found = []
    for plan, (kind, sources) in zip(step.plans, kinds, strict=True):
        if sources:
            node = _replace(step.graph, plan, kind, sources, both, made, moved)
            moved[plan.site.node] = node
            found.append(replace(plan, lowering=f"native {kind}", lowered=node))
        else:
            found.append(replace(plan, lowering=f"emulated: {kind}") if kind else plan)
    step.plans = tuple(found)
    erase_unused(step.graph, LEFT_OVER)


def _read_both_ways(sources: Sequence[Source]) -> set[tuple[Node, str]]:
    """Return the tensors on a GPU whose codes a kernel stores along both axes from one read.

    Not those that the backward quantizes again, parameters: it needs the other axis alone.
    """
    axes: dict[tuple[Node, str], set[int]] = {}
    for source in sources:
        if source.recompute is None and value_of(source.base).device.type == "cuda":
            axes.setdefault((source.base, source.format), set()).add(source.axis)
    return {key for key, found in axes.items() if found == {-1, -2} and _stores_both(*key)}


def _stores_both(base: Node, format: str) -> bool:
    value = value_of(base)
    work = Quantize(format=parse_format(format), dtype=value.dtype, rank=value.dim(), wanted="both")
    return not choose(work, at_hand(value.device.type)).falls_back


def _replace(
    graph: Graph,
    plan: Plan,
    kind: str,
    sources: Sequence[Source],
    both: set[tuple[Node, str]],
    made: _Codes,
    moved: dict[Node, Node],
) -> Node:
    """Put the product of codes in the place of a product, and make the codes that are not there yet."""
    product = plan.site.node
    with graph.inserting_before(product):
        for source in sources:
            if (source.base, source.axis, source.format) not in made:
                base = moved.get(source.base, source.base)
                stored = (source.base, source.format) in both
                made.update(_codes(graph, product, source, base, stored))
        arguments = [part for s in sources for part in made[s.base, s.axis, s.format]]
        bias = argument_node(product, 0) if product.target is aten.addmm.default else None
        texts = [source.format for source in sources]
        args = (*arguments, kind, *texts, value_of(product).dtype, bias)
        new = add_node(graph, ops.scaled_mm, args, like=product)
    product.replace_all_uses_with(new)
    graph.erase_node(product)
    return new


def _codes(graph: Graph, product: Node, source: Source, base: Node, both: bool) -> _Codes:
    text = source.format
    target, args = (
        (ops.quantize_both, (base, text)) if both else (ops.quantize, (base, text, source.axis))
    )
    stored = add_node(graph, target, args, like=product)
    found: _Codes = {}
    for first, axis in ((0, -1), (2, -2)) if both else ((0, source.axis),):
        parts = [add_item(graph, stored, first + i, product) for i in (0, 1)]
        found[source.base, axis, text] = (parts[0], parts[1])
    for node in (stored, *stored.users):
        meta.keep_alike(node, source.recompute)
    return found


def _kind(plan: Plan, always: bool) -> tuple[str, list[Source]]:
    """Return the kind of native product and what its operands quantize, or a reason and nothing."""
    site, product = plan.site, plan.site.node
    machine = at_hand(value_of(product).device.type)
    chosen = choose(multiply_of(plan), machine, always=always)
    if chosen.falls_back:
        return chosen.why, []
    sources = []
    for operand in site.operands:
        node, axis = quantizer_of(argument_node(product, operand.argument), operand.axis)
        quantizer = Quantizer.read(node)
        if quantizer is None or not quantizer.plain:
            return "no native product of operands that are rotated or rounded at random", []
        source = Source(
            base=quantizer.source,
            axis=axis,
            format=quantizer.format,
            recompute=meta.kept_or_not(node),
        )
        sources.append(source)
    return chosen.kernel.name, sources
