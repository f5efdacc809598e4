"""Quantize the operands the plan quantizes.

    mm(x, y)  ->  mm(fake_quant(x, format, -1), fake_quant(y, format, -2))

A random operand also takes the step's seed, drawn once: in the forward if a product there needs
it, so that a recomputed forward and its backward see the same bits. `site` makes draws independent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

from qgraph import ops
from qgraph.formats import Range
from qgraph.passes.edit import add_node, wrap_operand
from qgraph.passes.plan import Plan
from qgraph.passes.sites import Site
from qgraph.policy import OperandPolicy


def insert_fake_quant(graph: Graph, plans: Sequence[Plan]) -> None:
    """Insert a fake_quant before each operand that has a format."""
    seed = find_seed(graph, plans)
    for plan in plans:
        for index, (operand, wanted) in enumerate(
            zip(plan.site.operands, plan.operands, strict=False)
        ):
            if wanted.format is None:
                continue
            noise = _tail(wanted, seed, 2 * plan.site.number + index)
            history = (plan.history[0], plan.history[1] + index)
            free = axis_is_free(wanted)
            text = str(wanted.format)

            def call(
                base: Node, axis: int, plan: Plan = plan, text: str = text, free: bool = free,
                noise: tuple[object, ...] = noise, history: tuple[int, int] = history,
                range: Range = wanted.format.scale.range,
            ) -> Node:  # fmt: skip
                args = (base, text, -1 if free else axis, *noise)
                if range.kind == "delayed":
                    past = _past(graph, base, history, int(range.value), plan.site.node)
                    args = (*args, *(None, 0, None)[len(noise) :], past)
                return add_node(graph, ops.fake_quant, args, like=plan.site.node)

            flat = spans_positions(plan.site, wanted)
            wrap_operand(graph, plan.site.node, operand, call, flat=flat)


def spans_positions(site: Site, wanted: OperandPolicy) -> bool:
    """Whether one scale serves all positions and images of a channel.

    So it does where a convolution's wgrad has a scale a row: it sums over positions and images.
    """
    block = wanted.format.block if wanted.format and not wanted.transform else None
    rows = block is not None and block.across == 1 and block.along is None
    return rows and site.op == "conv" and site.role == "wgrad"


def axis_is_free(wanted: OperandPolicy) -> bool:
    """Whether an operand is the same quantized along either axis, so that one copy serves both.

    So it is for a square tile or a whole tensor, rounded to nearest and not rotated.
    """
    if wanted.format is None or wanted.transform or wanted.random:
        return False
    if wanted.format.scale.range.kind == "delayed":
        return False  # each operand has a history of its own
    return wanted.format.block.across == wanted.format.block.along


def _past(graph: Graph, base: Node, history: tuple[int, int], length: int, product: Node) -> Node:
    """Add the look at the steps before; a graph without a backward leaves the history alone."""
    trains = any("tangents" in node.name for node in graph.find_nodes(op="placeholder"))
    node = add_node(graph, ops.delayed, (base, *history, length, trains), like=product)
    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return node


def _tail(wanted: OperandPolicy, seed: Node | None, site: int) -> tuple[object, ...]:
    """Return the arguments after the axis: seed, site and rounding, as far as they are needed."""
    drawn = (seed, site) if wanted.draws else (None, 0)
    usual = "stochastic" if wanted.draws else "nearest"
    if str(wanted.rounding) != usual:
        return (*drawn, str(wanted.rounding))
    return drawn if wanted.draws else ()


def find_seed(graph: Graph, plans: Sequence[Plan]) -> Node | None:
    """Return the node that draws the step's seed, added where a plan needs one; None without."""
    if not any(plan.stochastic for plan in plans):
        return None
    found = next(iter(graph.find_nodes(op="call_function", target=ops.seed)), None)
    in_forward = any(plan.stochastic and plan.site.role == "fprop" for plan in plans)
    return found or _insert_seed(graph, in_forward=in_forward)


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
