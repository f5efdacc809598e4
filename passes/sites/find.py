"""Find every matrix product of a joint graph, and say what each operand is.

A site is one product: its role, its module, what its operands are and the axis it sums over.
In the backward, the operand that depends on a tangent is the grad_output. The other is the
weight if it comes from a parameter (see `sites/weights.py`), otherwise what the forward
product of the same sequence number took: its input, or its lhs or rhs when no parameter is involved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch.fx import Graph, Node

from qgraph.compat import meta
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.places import block_of, frame_module, module_path
from qgraph.passes.graph.targets import (
    ELSEWHERE,
    PRODUCTS,
    argument_node,
    aten,
    is_convolution,
    is_grouped,
    root_of,
    size_hint,
    value_of,
)
from qgraph.passes.sites.attention import attention_product
from qgraph.passes.sites.convolution import describe_convolution
from qgraph.passes.sites.heads import mark_heads
from qgraph.passes.sites.site import GraphFacts, Site
from qgraph.passes.sites.weights import MAKES, Weights, find_weights


def find_sites(graph: Graph, facts: GraphFacts) -> tuple[Site, ...]:
    """Return every matrix product in `graph`, in graph order; the graph is not changed.

    `split_products` comes first: a node that holds two products would count as its first.
    """
    late, frame = _depends_on_tangents(graph), frame_module(graph, facts.modules) or facts.root
    weights = find_weights(graph, facts.parameters, facts.buffers, late)
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    forward: dict[object, _Forward] = {}
    sites: list[Site] = []
    for node in nodes:
        if node.target in PRODUCTS:
            found = [_product(node, weights, late, forward)]
        elif is_convolution(node):
            found = [_convolution(node)]
        elif (describe := _elsewhere(node)) is not None:
            found = [_plain(node, late, *entry) for entry in describe(node)]
        else:
            continue
        sites += [_place(site, len(sites) + i, facts, frame) for i, site in enumerate(found)]
    return mark_heads(sites, facts)


def _depends_on_tangents(graph: Graph) -> set[Node]:
    late: set[Node] = set()
    for node in graph.nodes:
        is_tangent = node.op == "placeholder" and "tangents" in node.name
        if is_tangent or any(source in late for source in node.all_input_nodes):
            late.add(node)
    return late


def _is_backward(node: Node, late: set[Node]) -> bool:
    return meta.half(node) == "backward" or node in late


@dataclass(frozen=True, kw_only=True)
class _Forward:
    """A product of the forward, which those of its backward are told apart by."""

    node: Node
    op: str
    kinds: tuple[str, ...]
    computed: bool  # its weight is computed
    makes: bool  # its result is one


def _product(
    node: Node,
    weights: Weights,
    late: set[Node],
    forward: dict[object, _Forward],
) -> Site:
    first = PRODUCTS[node.target]
    sources = [argument_node(node, first), argument_node(node, first + 1)]
    stored = [weights.stored_below(source) for source in sources]
    sequence = meta.sequence(node)
    left, right = map(value_of, sources)
    # Without a backward, as in evaluation, products may all have one number.
    backward = _is_backward(node, late)
    pair = forward.get(sequence) if backward else None
    made = [weights.made_below(node, source) for source in sources]
    # A weight as it is stored comes first: pairs with one are of an input made of parameters.
    use_made = pair.computed if pair else not any(stored) and sum(map(bool, made)) == 1
    makes = pair.makes if pair else node in weights.makers
    shown: list[Node | None] = [None, None] if makes else made if use_made else stored
    if not backward:
        role = "fprop"
        # The experts' weights may be put together on the way; their place says what they are.
        kinds = ("input", "weight") if is_grouped(node) else _forward_kinds([*map(bool, shown)])
        op = _forward_op(node, kinds, shown)
        forward[sequence] = _Forward(node=node, op=op, kinds=kinds, computed=use_made, makes=makes)
    elif is_grouped(node):
        op, (role, kinds) = "experts", _grouped_backward(sources, right.dim(), late)
    else:
        kinds = _backward_kinds(sources, [*map(bool, shown)], late, pair)
        role = "wgrad" if "input" in kinds else "dgrad"
        op = pair.op if pair else ("linear" if {"weight", "input"} & set(kinds) else "matmul")
    sizes = [*map(size_hint, (*left.shape, right.shape[-1]))]
    batch, (m, k, n) = prod(sizes[:-3]), sizes[-3:]
    site = _site(
        node,
        op=op,
        role=role,
        operands=tuple(
            Operand(kind=kind, argument=first + i, axis=-1 - i) for i, kind in enumerate(kinds)
        ),
        shape=(batch, m, n, k),
        dtype=left.dtype,
    )
    return replace(site, unsupported=MAKES) if makes else site


def _convolution(node: Node) -> Site:
    role, operands, shape = describe_convolution(node)
    return _site(
        node, op="conv", role=role, operands=operands, shape=shape, dtype=value_of(node).dtype
    )


def _site(
    node: Node,
    *,
    op: str,
    role: str,
    operands: tuple[Operand, ...],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> Site:
    is_float = dtype in (torch.float32, torch.bfloat16, torch.float16)
    return Site(
        node=node,
        number=0,
        op=op,
        role=role,
        module="",
        block=None,
        block_count=None,
        operands=operands,
        shape=shape,
        flops=2 * prod(shape),
        dtype=_short(dtype),
        unsupported="" if is_float else f"dtype {_short(dtype)} is not quantized",
    )


def _forward_op(node: Node, kinds: tuple[str, ...], weights: list[Node | None]) -> str:
    if is_grouped(node):
        return "experts"
    if "weight" not in kinds:
        return attention_product(node, PRODUCTS[node.target])
    # A stack of matrices in one parameter: experts, each with rows of its own.
    batched = node.target in (aten.bmm.default, aten.baddbmm.default)
    stacked = any(weight is not None and value_of(weight).dim() > 2 for weight in weights)
    return "experts" if batched and stacked else "linear"


def _grouped_backward(
    sources: list[Node], rank: int, late: set[Node]
) -> tuple[str, tuple[str, ...]]:
    kinds = ["grad_output" if source in late else "" for source in sources]
    if rank == 2:  # summed over the rows of each group
        return "wgrad", tuple(kind or "input" for kind in kinds)
    return "dgrad", tuple(kind or "weight" for kind in kinds)


def _forward_kinds(from_parameter: list[bool]) -> tuple[str, ...]:
    if from_parameter == [False, True]:
        return ("input", "weight")
    if from_parameter == [True, False]:
        return ("weight", "input")
    return ("lhs", "rhs")


def _backward_kinds(
    sources: list[Node],
    from_parameter: list[bool],
    late: set[Node],
    pair: _Forward | None,
) -> tuple[str, ...]:
    gradient = 0 if sources[0] in late else 1
    other = 1 - gradient
    if pair is None:  # no forward product to look at: a product that only the backward has
        kind = "weight" if from_parameter[other] else "input"
    else:
        first = PRODUCTS[pair.node.target]
        if from_parameter[other] and "weight" in pair.kinds:
            kind = "weight"
        elif "weight" in pair.kinds:
            kind = "input"
        else:
            same = root_of(sources[other]) is root_of(argument_node(pair.node, first))
            kind = "lhs" if same else "rhs"
    pairs = ("grad_output", kind)
    return pairs if gradient == 0 else pairs[::-1]


Describe = Callable[[Node], list[tuple[str, int, str]]]


def _elsewhere(node: Node) -> Describe | None:
    name = str(node.target)
    return next((describe for start, describe in ELSEWHERE if name.startswith(start)), None)


def _plain(node: Node, late: set[Node], op: str, flops: int, reason: str) -> Site:
    values = map(meta.value, node.all_input_nodes)
    value = next((found for found in values if hasattr(found, "dtype")), None)
    return Site(
        node=node,
        number=0,
        op=op,
        role="dgrad" if _is_backward(node, late) else "fprop",
        module="",
        block=None,
        block_count=None,
        operands=(),
        shape=(0, 0, 0, 0),
        flops=flops,
        dtype=_short(value.dtype) if value is not None else "?",
        unsupported=reason,
    )


def _place(site: Site, number: int, facts: GraphFacts, frame: str) -> Site:
    module = module_path(site.node, facts.modules, frame)
    block, count = block_of(module, facts.blocks)
    return replace(
        site, number=number, module=module, block=block, block_count=count,
        sequence=meta.sequence(site.node),
    )  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(
        name := str(dtype)[6:], name
    )
