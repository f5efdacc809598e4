"""What a forward graph saves for its backward, and what a policy says about each tensor.

    forward(...) -> (results, saved tensors)      backward(saved tensors, gradients of results) -> gradients

A saved tensor may be a view; what lies in memory is its base, and two views of one base are saved
once. Bases that are inputs of the graph (parameters) lie in memory anyway and are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.formats import BlockFormat, parse_format
from qgraph.passes.graph.places import block_of, frame_module, module_path
from qgraph.passes.graph.quantizer import QUANTIZERS, Quantizer
from qgraph.passes.graph.targets import LAYOUTS, argument_node, aten, sizes_of, value_of
from qgraph.passes.sites.find import find_sites
from qgraph.passes.sites.site import GraphFacts
from qgraph.policy import StashRule, Stored

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """One tensor that waits for the backward, and how. Sizes are in bytes.

    `op` is the product that made it, or nothing. `format` is a text form, or `high`; `exact` says
    that nothing is lost, as it had that format's values already.
    """

    module: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    stored: int
    format: str = "high"
    rounding: str = "nearest"
    exact: bool = False
    reason: str = ""  # why it is saved as it is


@dataclass(frozen=True, kw_only=True)
class Base:
    """A tensor that is saved, as it is or under views: what a rule is asked about."""

    node: Node = field(repr=False)
    views: dict[Node, tuple[Node, ...]] = field(repr=False)  # of each saved node, the base's first
    op: str
    module: str
    block: int | None
    block_count: int | None
    role: str = "fprop"
    operand_kinds: tuple[str, ...] = ("input", "weight")
    part: str = ""


def saved_nodes(forward: Graph, results: int) -> list[Node]:
    """Return the tensors that `forward` gives beyond its first `results`, as they stand."""
    (output,) = forward.find_nodes(op="output")
    values: Any = output.args[0]
    kept = (value for value in values[results:] if isinstance(value, Node))
    return list(dict.fromkeys(n for n in kept if meta.is_tensor(n)))


def find_bases(forward: Graph, results: int, facts: GraphFacts) -> list[Base]:
    """Return what `forward` saves, each tensor once; inputs of the graph are left out."""
    found: dict[Node, dict[Node, tuple[Node, ...]]] = {}
    for node in saved_nodes(forward, results):
        chain = _below_views(node)
        if chain[0].op != "placeholder":
            found.setdefault(chain[0], {})[node] = chain[1:]
    products = {site.node: site.op for site in find_sites(forward, facts)}
    frame = frame_module(forward, facts.modules)
    bases = []
    for base, views in found.items():
        module = module_path(base, facts.modules, frame)
        block, count = block_of(module, facts.blocks)
        bases.append(
            Base(
                node=base, views=views, op=_op(base, products), module=module, block=block,
                block_count=count,
            )
        )  # fmt: skip
    return bases


def decide_saved(
    base: Base, rules: Sequence[StashRule], parents: dict[Node, str]
) -> tuple[Stored | None, str]:
    """Return how a base is stored, with the reason where it stays as it is.

    A tensor that is quantized already, to no more bits than the rule wants, is stored as its own
    codes: nothing is lost.
    """
    value = value_of(base.node)
    size = prod(sizes_of(base.node))
    rule = next((r for r in rules if size >= r.min_size and r.match.matches(base)), None)
    if rule is None:
        return None, "no stash rule matches"
    if rule.stored.format is None:
        return None, f"kept: {rule.title}"
    if value.dtype not in _FLOATS:
        return None, f"{str(value.dtype)[6:]} is not quantized"
    if not all(isinstance(s, int) for s in value.shape):
        return None, "its size is dynamic"
    own = own_format(base.node)
    if own is not None and own.bits_per_element <= rule.stored.format.bits_per_element:
        return Stored(format=own), ""
    why = {"": "it depends on no parameter", "weights": "it is made of parameters alone"}
    if parents[base.node] in why:
        return None, why[parents[base.node]]
    if value.dim() < 2 or value.shape[-1] == 1 or _is_statistic(base.node):
        return None, "a statistic: one number a row"
    return rule.stored, ""


def own_format(node: Node) -> BlockFormat | None:
    """Return the format a tensor is quantized to already, if its codes can be had again."""
    found = Quantizer.read(node)
    if found is None or node.target not in QUANTIZERS or found.signs or found.amax is not None:
        return None
    return parse_format(found.format)


def ancestry(forward: Graph, facts: GraphFacts, differentiable: set[str]) -> dict[Node, str]:
    """Return for each node what it is made of: `weights` alone, an `activation`, or neither.

    `differentiable` are the inputs that get a gradient: in a piece of a model, activations too.
    """
    kinds: dict[Node, str] = {}
    for node in forward.nodes:
        if node.op == "placeholder":
            made = "weights" if node.name in facts.parameters else ""
            kinds[node] = made or ("activation" if node.name in differentiable else "")
            continue
        sources = {kinds.get(source, "") for source in node.all_input_nodes}
        if "activation" in sources or sources == {"", "weights"}:
            kinds[node] = "activation"
        else:
            kinds[node] = "weights" if sources == {"weights"} else ""
    return kinds


def _below_views(node: Node) -> tuple[Node, ...]:
    """Return the base of `node`, and the views that lead from it to `node`."""
    chain = [node]
    while chain[0].op == "call_function" and chain[0].target in LAYOUTS:
        (source, *others) = chain[0].all_input_nodes
        if others:  # a size of another tensor
            break
        chain.insert(0, source)
    return tuple(chain)


def _op(base: Node, products: dict[Node, str]) -> str:
    """Return which product made a tensor: itself, below a bias, or as one of its results."""
    sources = [base]
    if _picks(base):
        sources = [argument_node(base, 0)]
    elif base.target is aten.add.Tensor:
        vectors = [n for n in base.all_input_nodes if value_of(n).dim() <= 1]
        sources = [n for n in base.all_input_nodes if vectors and n not in vectors]
    for node in sources:
        below = _below_views(node)[0]
        if below in products or below.target is ops.scaled_mm:
            return products.get(below, "linear")
    return ""


def _picks(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_statistic(node: Node) -> bool:
    """Whether it is what attention keeps of its scores: the log of their sum, or a seed."""
    if not _picks(node):
        return False
    return "attention" in str(argument_node(node, 0).target) and bool(node.args[1] != 0)
