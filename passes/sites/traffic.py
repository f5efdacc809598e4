"""How many bytes the work between the products moves, if it is fused as well as it can be.

Elementwise ops and reductions that feed one another run as one kernel: it reads each tensor from
outside once and writes each tensor that outside needs once. Views move nothing.
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor
from torch.fx import Graph, Node

from qgraph.compat import meta
from qgraph.passes.graph.places import block_of, frame_module, module_path
from qgraph.passes.graph.targets import VIEWS
from qgraph.passes.sites.find import find_sites
from qgraph.passes.sites.site import GraphFacts


def elementwise_traffic(graph: Graph, facts: GraphFacts) -> dict[int | None, int]:
    """Return bytes read and written by all that is no product, by block; None is outside of blocks.

    Forward and backward are apart. Weights that rows are picked from are not counted.
    """
    products = {site.node for site in find_sites(graph, facts)}
    work = [
        n for n in graph.nodes
        if n.op == "call_function" and n.target not in VIEWS and n not in products
    ]  # fmt: skip
    kernel = _kernels(work)
    blocks = _blocks(graph, facts)
    total: Counter[int | None] = Counter()
    seen: set[tuple[Node, Node, str]] = set()

    def count(source: Node, where: Node, at: Node, what: str) -> None:
        if (source, where, what) not in seen:
            seen.add((source, where, what))
            total[blocks[at]] += _bytes(source)

    for node in work:
        for source in map(_below_views, node.all_input_nodes):
            if kernel.get(source) is not kernel[node] and not _is_table(source, facts):
                count(source, kernel[node], node, "read")
        if any(kernel.get(user) is not kernel[node] for user in _readers(node)):
            count(node, kernel[node], node, "write")
    return dict(total)


def _blocks(graph: Graph, facts: GraphFacts) -> dict[Node, int | None]:
    """Return each node's block; what has no module, such as a sum of gradients, is where its inputs are."""
    frame = frame_module(graph, facts.modules)
    found: dict[Node, int | None] = {}
    for node in graph.nodes:
        path = module_path(node, facts.modules, frame)
        found[node] = block_of(path, facts.blocks)[0]
        if path == frame:
            above = [b for source in node.all_input_nodes if (b := found[source]) is not None]
            latest = min if meta.half(node) == "backward" else max  # the backward runs from the end
            found[node] = latest(above, default=None)
    return found


def _kernels(work: list[Node]) -> dict[Node, Node]:
    """Return for each node the first of its kernel: what it shares data with, in its half of the graph."""
    first = {node: node for node in work}

    def find(node: Node) -> Node:
        while first[node] is not node:
            node = first[node]
        return node

    for node in work:
        for source in map(_below_views, node.all_input_nodes):
            if source in first and meta.half(source) == meta.half(node):
                one, other = find(source), find(node)
                first[other] = one
    return {node: find(node) for node in work}


def _below_views(node: Node) -> Node:
    while node.op == "call_function" and node.target in VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _readers(node: Node) -> list[Node]:
    found: list[Node] = []
    for user in node.users:
        found += _readers(user) if user.target in VIEWS and user.op == "call_function" else [user]
    return found


def _is_table(node: Node, facts: GraphFacts) -> bool:
    value = meta.value(node)
    return node.name in facts.parameters and isinstance(value, Tensor) and value.dim() > 1


def _bytes(node: Node) -> int:
    value = meta.value(node)
    if not isinstance(value, Tensor):
        return 0
    return int(value.numel()) * value.element_size()
