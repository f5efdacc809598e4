"""Find every matrix product of a joint graph, and say what each operand is.

A site is one product: its role, its module, what its operands are and the axis it sums over.
In the backward, the operand that depends on a tangent is the grad_output. The other is the
weight if it comes from a parameter through views and casts, otherwise what the forward
product of the same `seq_nr` took: its input, or its lhs or rhs when no parameter is involved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch.fx import Graph, Node

from qgraph.passes.targets import (
    ELSEWHERE,
    PRODUCTS,
    VIEWS,
    argument_node,
    size_hint,
    value_of,
)

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_export_root")
_USUAL_KINDS = {
    "fprop": ("input", "weight"),
    "dgrad": ("grad_output", "weight"),
    "wgrad": ("input", "grad_output"),
}


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph alone does not say.

    `parameters` are the names of the placeholders that hold parameters; `blocks` gives, for each
    stack of blocks (`model.layers`), how many there are in the whole model; `modules` gives the
    path of each module by its id, as text. `history` is the store of amax histories, if there is one.
    """

    parameters: frozenset[str]
    blocks: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    history: int | None = None


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One operand of a product: what it is, where it stands, and the axis the product sums over."""

    kind: str  # input, weight, grad_output, lhs, rhs
    argument: int  # position among the node's arguments
    axis: int  # -1 or -2


@dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix product of a graph. Sizes are elements; of a dynamic size, its hint."""

    node: Node = field(repr=False, compare=False)
    number: int  # counted through the graph, from 0
    op: str  # linear, matmul, conv, experts, sdpa
    role: str  # fprop, dgrad, wgrad
    module: str
    block: int | None
    block_count: int | None
    operands: tuple[Operand, ...]
    shape: tuple[int, int, int, int]  # batch, m, n, k; zeros where an op has no such sizes
    flops: int
    dtype: str
    unsupported: str = ""  # why qgraph cannot quantize it, or nothing

    @property
    def operand_kinds(self) -> tuple[str, ...]:
        """The operands' kinds, in argument order; of a product qgraph leaves alone, the usual ones."""
        if self.operands:
            return tuple(operand.kind for operand in self.operands)
        if self.op in ("conv", "experts"):
            return _USUAL_KINDS[self.role]
        return ("lhs", "rhs")


def find_sites(graph: Graph, facts: GraphFacts) -> tuple[Site, ...]:
    """Return every matrix product in `graph`, in graph order; the graph is not changed."""
    late = _depends_on_tangents(graph)
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    forward: dict[object, tuple[Node, tuple[str, ...]]] = {}
    sites: list[Site] = []
    for node in nodes:
        if node.target in PRODUCTS:
            found = [_product(node, facts, late, forward)]
        elif (describe := _elsewhere(node)) is not None:
            found = [_plain(node, late, *entry) for entry in describe(node)]
        else:
            continue
        sites += [_place(site, len(sites) + i, facts) for i, site in enumerate(found)]
    return tuple(sites)


def module_path(node: Node, modules: Mapping[str, str]) -> str:
    """Return the dotted path of the module a node belongs to, "" for the root or an unknown one.

    Found by the module's id where `modules` has it. A path Dynamo writes is relative to the frame
    it compiled (`L['args'][0].model`, or an inner module's `L['self'].layers`): the last resort.
    """
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    key, value = list(stack.items())[-1]
    if (name := modules.get(str(key).split("@")[0])) is not None:
        return name
    path = re.sub(r"_modules\[['\"]([^'\"]*)['\"]\]", r"\1", str(value[0]).split("@")[0])
    path = re.sub(r"^(L|G)\[['\"][^'\"]*['\"]\](\[\d+\])?", "", path)
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    parts = [part for part in path.split(".") if part and part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == ["self"] else parts)


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """Return for each prefix followed by a number in `names`, how many numbers there are."""
    stacks: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                prefix = ".".join(parts[:i])
                stacks[prefix] = max(stacks.get(prefix, 0), int(part) + 1)
                break
    return stacks


def _depends_on_tangents(graph: Graph) -> set[Node]:
    late: set[Node] = set()
    for node in graph.nodes:
        is_tangent = node.op == "placeholder" and "tangents" in node.name
        if is_tangent or any(source in late for source in node.all_input_nodes):
            late.add(node)
    return late


def _is_backward(node: Node, late: set[Node]) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward" or node in late


def _product(
    node: Node,
    facts: GraphFacts,
    late: set[Node],
    forward: dict[object, tuple[Node, tuple[str, ...]]],
) -> Site:
    first = PRODUCTS[node.target]
    sources = [argument_node(node, first), argument_node(node, first + 1)]
    backward = _is_backward(node, late)
    from_parameter = [_root(source).name in facts.parameters for source in sources]
    sequence = node.meta.get("seq_nr")
    if not backward:
        kinds = _forward_kinds(from_parameter)
        role = "fprop"
        forward[sequence] = (node, kinds)
    else:
        kinds = _backward_kinds(sources, from_parameter, late, forward.get(sequence))
        role = "wgrad" if "input" in kinds else "dgrad"
    left, right = map(value_of, sources)
    sizes = [size_hint(size) for size in (*left.shape, right.shape[-1])]
    batch, (m, k, n) = prod(sizes[:-3]), sizes[-3:]
    is_float = left.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return Site(
        node=node,
        number=0,
        op="linear" if {"weight", "input"} & set(kinds) else "matmul",
        role=role,
        module="",
        block=None,
        block_count=None,
        operands=tuple(
            Operand(kind=kind, argument=first + i, axis=-1 - i) for i, kind in enumerate(kinds)
        ),
        shape=(batch, m, n, k),
        flops=2 * batch * m * n * k,
        dtype=_short(left.dtype),
        unsupported="" if is_float else f"dtype {_short(left.dtype)} is not quantized",
    )


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
    pair: tuple[Node, tuple[str, ...]] | None,
) -> tuple[str, ...]:
    gradient = 0 if sources[0] in late else 1
    other = 1 - gradient
    if pair is None:  # no forward product to look at: a product that only the backward has
        kind = "weight" if from_parameter[other] else "input"
    else:
        node, kinds = pair
        first = PRODUCTS[node.target]
        if from_parameter[other] and "weight" in kinds:
            kind = "weight"
        elif "weight" in kinds:
            kind = "input"
        else:
            same = _root(sources[other]) is _root(argument_node(node, first))
            kind = "lhs" if same else "rhs"
    pairs = ("grad_output", kind)
    return pairs if gradient == 0 else pairs[::-1]


def _root(source: Node) -> Node:
    """Follow views and casts back to where the numbers come from."""
    while source.op == "call_function" and source.target in VIEWS:
        source = source.all_input_nodes[0]
    return source


Describe = Callable[[Node], list[tuple[str, str, int, str]]]


def _elsewhere(node: Node) -> Describe | None:
    name = str(node.target)
    return next((describe for start, describe in ELSEWHERE if name.startswith(start)), None)


def _plain(node: Node, late: set[Node], op: str, role: str, flops: int, reason: str) -> Site:
    value = next(
        (n.meta["val"] for n in node.all_input_nodes if hasattr(n.meta.get("val"), "dtype")), None
    )
    if not role:
        role = "dgrad" if _is_backward(node, late) else "fprop"
    return Site(
        node=node,
        number=0,
        op=op,
        role=role,
        module="",
        block=None,
        block_count=None,
        operands=(),
        shape=(0, 0, 0, 0),
        flops=flops,
        dtype=_short(value.dtype) if value is not None else "?",
        unsupported=reason,
    )


def _place(site: Site, number: int, facts: GraphFacts) -> Site:
    module = module_path(site.node, facts.modules)
    block, count = block_of(module, facts.blocks)
    return replace(site, number=number, module=module, block=block, block_count=count)


def block_of(module: str, blocks: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Return which block of its stack a module is in, and how many there are; None outside stacks."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        prefix = ".".join(parts[:i])
        if part.isdigit() and prefix in blocks:
            return int(part), blocks[prefix]
    return None, None


def _short(dtype: torch.dtype) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(
        name := str(dtype)[6:], name
    )
