"""Multiply codes where the device can: the target `native`.

    mm(fake_quant(x, f, -1), fake_quant(y, g, -2))
        ->  scaled_mm(*quantize(x, f, -1), *quantize(y, g, -2))

One quantization still serves every product that reads it. What has no native product stays
emulated, and its plan says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from qgraph import ops
from qgraph.ops.native import MAX_SUMMED, native_kind
from qgraph.passes.edit import add_item, add_node, below_permutes
from qgraph.passes.plan import Plan
from qgraph.passes.targets import argument_node, value_of

aten = torch.ops.aten
_Codes = dict[tuple[object, ...], tuple[Node, Node]]


def lower_native(graph: Graph, plans: Sequence[Plan], *, always: bool = False) -> tuple[Plan, ...]:
    """Replace products by native ones where there are any; return the plans, saying what each became.

    With `always`, also where native products are known to be slower than emulation.
    """
    made: _Codes = {}
    found = tuple(_lower(graph, plan, made, always) for plan in plans)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in _LEFT_OVER and not node.users:
            graph.erase_node(node)
    return found


_LEFT_OVER = frozenset(
    {ops.fake_quant, ops.rotate_quant, aten.permute.default, aten.t.default, aten.transpose.int}
)


def _lower(graph: Graph, plan: Plan, made: _Codes, always: bool) -> Plan:
    if plan.status != "quantized" or plan.lowering:
        return plan
    kind, sources = _kind(plan, always)
    if not sources:
        return replace(plan, lowering=f"emulated: {kind}")
    product = plan.site.node
    arguments: list[Node] = []
    with graph.inserting_before(product):
        for base, axis, text in sources:
            key = (base, axis, text)
            if key not in made:
                stored = add_node(graph, ops.quantize, (base, text, axis), like=product)
                made[key] = (
                    add_item(graph, stored, 0, product),
                    add_item(graph, stored, 1, product),
                )
            arguments += made[key]
        bias = argument_node(product, 0) if product.target is aten.addmm.default else None
        texts = [text for _, _, text in sources]
        args = (*arguments, kind, *texts, value_of(product).dtype, bias)
        new = add_node(graph, ops.scaled_mm, args, like=product)
    product.replace_all_uses_with(new)
    graph.erase_node(product)
    return replace(plan, lowering=f"native {kind}")


def _kind(plan: Plan, always: bool) -> tuple[str, list[tuple[Node, int, str]]]:
    """Return the kind of native product and what its operands quantize, or a reason and nothing."""
    site, product = plan.site, plan.site.node
    if product.target not in (aten.mm.default, aten.addmm.default):
        return f"no native product for {product.target}", []
    if product.kwargs or (product.target is aten.addmm.default and _bias_dims(product) != 1):
        return "no native product that scales or adds a matrix", []
    formats = [operand.format for operand in plan.operands]
    if formats[0] is None or formats[1] is None:
        return "no native product with an operand in high precision", []
    result = value_of(product)
    kind = native_kind(
        formats[0], formats[1], result.device.type, always=always, dtype=result.dtype
    )
    if kind.startswith("no "):
        return kind, []
    summed: Any = value_of(argument_node(product, site.operands[0].argument)).shape[-1]
    if kind == "int8" and not statically_known_true(summed <= MAX_SUMMED):
        return f"no native product that sums more than {MAX_SUMMED} codes", []
    sources = []
    for operand in site.operands:
        quantized, order = below_permutes(argument_node(product, operand.argument))
        if quantized.target is not ops.fake_quant or len(quantized.args) > 3:
            return "no native product of operands that are rotated or rounded at random", []
        base, text = argument_node(quantized, 0), str(quantized.args[1])
        sources.append((base, order[operand.axis] - len(order), text))
    return kind, sources


def _bias_dims(product: Node) -> int:
    return int(value_of(argument_node(product, 0)).dim())
