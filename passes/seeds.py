"""The step's random bits: one draw for all processes, and a stream of its own for each of them.

A seed is drawn once a step. Signs are drawn from the common one, since parts of one tensor are turned
alike; codes from the process's own, since rounding errors of several processes average out.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.passes.graph.edit import add_node
from qgraph.passes.sites.processes import Processes


def common_seed(graph: Graph, processes: Processes | None, *, in_forward: bool = True) -> Node:
    """Return the node of the seed that all processes of a group share, added where there is none."""
    shared = processes is not None and processes.group
    found = _find(graph, ops.shared_seed) or _find(graph, ops.seed)
    if found is None or (shared and found.target is ops.seed):
        found = found or _draw(graph, in_forward=in_forward)
        if processes is not None and processes.group:
            found = _after(graph, found, ops.shared_seed, processes.group)
    return found


def own_seed(graph: Graph, processes: Processes | None, *, in_forward: bool = True) -> Node:
    """Return the node of the seed that this process's own random bits are drawn from, added if need be."""
    if (found := _find(graph, ops.stream)) is not None:
        return found
    seed = common_seed(graph, processes, in_forward=in_forward)
    if processes is None:
        return seed
    return _after(graph, seed, ops.stream, processes.stream)


def _find(graph: Graph, target: object) -> Node | None:
    return next(iter(graph.find_nodes(op="call_function", target=target)), None)  # type: ignore[arg-type]


def _after(graph: Graph, seed: Node, target: object, argument: object) -> Node:
    with graph.inserting_after(seed):
        node = add_node(graph, target, (seed, argument), like=seed)
    meta.keep(node)
    return node


def _draw(graph: Graph, *, in_forward: bool) -> Node:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        seed = graph.create_node("call_function", ops.seed, (), name="seed")
    with meta.fake_mode(graph):
        meta.set_value(seed, ops.seed())
    # One draw: recomputed in the backward it would be another, and the two halves would not agree.
    meta.put_in_half(seed, forward=in_forward)
    meta.keep(seed)
    return seed
