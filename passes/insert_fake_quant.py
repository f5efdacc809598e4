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
from qgraph.passes.seeds import drawn_in_forward, own_seed
from qgraph.passes.sites import Site
from qgraph.passes.splits import rows_are_cut, shares_range
from qgraph.policy import OperandPolicy


def insert_fake_quant(graph: Graph, plans: Sequence[Plan]) -> None:
    """Insert a fake_quant before each operand that has a format."""
    seed = None
    if any(plan.stochastic for plan in plans):
        seed = own_seed(graph, plans[0].processes, in_forward=drawn_in_forward(plans))
    for plan in plans:
        for index, (operand, wanted) in enumerate(
            zip(plan.site.operands, plan.operands, strict=False)
        ):
            if wanted.format is None:
                continue
            noise = _tail(wanted, seed, 2 * plan.site.number + index)
            history = (plan.history[0], plan.history[1] + index)
            free = axis_is_free(wanted)
            share = _share(plan, index)
            text = str(wanted.format)

            def call(
                base: Node, axis: int, plan: Plan = plan, text: str = text, free: bool = free,
                noise: tuple[object, ...] = noise, history: tuple[int, int] = history,
                range: Range = wanted.format.scale.range, share: tuple[object, ...] = share,
            ) -> Node:  # fmt: skip
                args = (base, text, -1 if free else axis, *noise)
                known = base
                if share:
                    shared = (base, text, -1 if free else axis, *share)
                    known = add_node(graph, ops.shared_amax, shared, like=plan.site.node)
                    known.meta["recompute"] = CheckpointPolicy.MUST_SAVE
                if range.kind == "delayed":
                    known = _past(graph, known, history, int(range.value), plan.site.node)
                if known is not base:
                    args = (*args, *(None, 0, None)[len(noise) :], known)
                return add_node(graph, ops.fake_quant, args, like=plan.site.node)

            flat = spans_positions(plan.site, wanted)
            wrap_operand(graph, plan.site.node, operand, call, flat=flat)


def _share(plan: Plan, index: int) -> tuple[object, ...]:
    """Return the last arguments of `shared_amax`, nothing if an operand's range is its own."""
    wanted, part = plan.operands[index], plan.parts[index] if plan.parts else None
    delayed = wanted.format is not None and wanted.format.scale.range.kind == "delayed"
    if delayed and plan.processes is not None and plan.processes.everyone:
        return (False, plan.processes.everyone)  # one history, the same on every process
    if part is None or not shares_range(wanted, part):
        return ()
    return (rows_are_cut(wanted, part), part.group)


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
