"""The seeds that a graph's random bits come from: one a step, and a stream of it for each process.

    seed  ->  shared_seed(seed, group)  ->  stream(shared_seed, number)

A process alone has the first only. Processes that hold parts of one tensor must draw the same seed,
and processes that train on parts of a batch must not: each node is added once a graph, where a pass
first asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from qgraph import ops
from qgraph.passes.edit import add_node
from qgraph.passes.plan import Plan
from qgraph.passes.processes import Processes


def common_seed(graph: Graph, processes: Processes | None, *, in_forward: bool = True) -> Node:
    """Return the node with the step's seed, the same on all processes of a group; signs are of it.

    `in_forward` says which half of a joint graph draws it, if none does yet.
    """
    seed = _find(graph, ops.seed) or _insert_seed(graph, in_forward=in_forward)
    if processes is None or not processes.group:
        return seed
    return _find(graph, ops.shared_seed) or _after(graph, seed, ops.shared_seed, processes.group)


def own_seed(graph: Graph, processes: Processes | None, *, in_forward: bool = True) -> Node:
    """Return the node with the seed of this process's own random bits; roundings are of it."""
    seed = common_seed(graph, processes, in_forward=in_forward)
    if processes is None:
        return seed
    return _find(graph, ops.stream) or _after(graph, seed, ops.stream, processes.stream)


def drawn_in_forward(plans: Sequence[Plan]) -> bool:
    """Whether a product of the forward takes random bits, so that the seed must be drawn there."""
    return any(plan.stochastic and plan.site.role == "fprop" for plan in plans)


def _find(graph: Graph, target: object) -> Node | None:
    return next(iter(graph.find_nodes(op="call_function", target=target)), None)  # type: ignore[arg-type]


def _after(graph: Graph, seed: Node, target: object, argument: object) -> Node:
    with graph.inserting_after(seed):
        node = add_node(graph, target, (seed, argument), like=seed)
    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return node


def _insert_seed(graph: Graph, *, in_forward: bool) -> Node:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    mode = next(
        node.meta["val"].fake_mode
        for node in graph.nodes
        if hasattr(node.meta.get("val"), "fake_mode")
    )
    with graph.inserting_before(first):
        seed = graph.create_node("call_function", ops.seed, (), name="seed")
    with mode:
        seed.meta["val"] = ops.seed()
    # One draw: recomputed in the backward it would be another, and the two halves would not agree.
    seed.meta["partitioner_tag"] = "is_forward" if in_forward else "must_be_in_backward"
    seed.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return seed
