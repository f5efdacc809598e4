"""Quantize the operands the plan quantizes.

    mm(x, y)  ->  mm(fake_quant(x, format, -1), fake_quant(y, format, -2))

A random operand also takes the step's seed, drawn once: in the forward if a product there needs
it, so that a recomputed forward and its backward see the same bits. `site` makes draws independent.
"""

from __future__ import annotations

from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.passes.graph.edit import add_node, wrap_operand
from qgraph.passes.graph.quantizer import Quantizer
from qgraph.passes.plan import Plan, draws_in_forward
from qgraph.passes.seeds import own_seed
from qgraph.passes.sites.splits import rows_are_cut, shares_range
from qgraph.passes.step import Step
from qgraph.passes.wanted import (
    axis_is_free,
    quantized_operands,
    shares_rows,
    spans_positions,
)
from qgraph.policy import OperandPolicy


def quantize_operands(step: Step) -> None:
    """Insert a quantizer before each operand that has a format."""
    seed = None
    if any(plan.stochastic for plan in step.plans):
        early = draws_in_forward(step.plans)
        seed = own_seed(step.graph, step.facts.processes, in_forward=early)
    for plan in step.plans:
        for index, operand, wanted in quantized_operands(plan):

            def call(
                base: Node,
                axis: int,
                plan: Plan = plan,
                index: int = index,
                wanted: OperandPolicy = wanted,
            ) -> Node:
                return _quantize(step, plan, index, wanted, seed, base, axis)

            flat, plane = spans_positions(plan.site, wanted), shares_rows(wanted)
            wrap_operand(step.graph, plan.site.node, operand, call, flat=flat, plane=plane)


def _quantize(
    step: Step,
    plan: Plan,
    index: int,
    wanted: OperandPolicy,
    seed: Node | None,
    base: Node,
    axis: int,
) -> Node:
    graph, product = step.graph, plan.site.node
    axis = -1 if axis_is_free(wanted) else axis
    usual = "stochastic" if wanted.draws else "nearest"
    quantizer = Quantizer(
        source=base,
        format=str(wanted.format),
        axis=axis,
        seed=seed if wanted.draws else None,
        site=2 * plan.site.number + index if wanted.draws else 0,
        rounding=None if str(wanted.rounding) == usual else str(wanted.rounding),
        amax=_amax(step, plan, index, wanted, base, axis),
    )
    return quantizer.write(graph, like=product)


def _amax(
    step: Step, plan: Plan, index: int, wanted: OperandPolicy, base: Node, axis: int
) -> Node | None:
    """Add what finds the largest magnitude, where other processes or the steps before have a say in it."""
    assert wanted.format is not None, "what is quantized has a format"
    known, graph, product = base, step.graph, plan.site.node
    if share := _share(plan, index):
        shared = (base, str(wanted.format), axis, *share)
        known = add_node(graph, ops.shared_amax, shared, like=product)
        meta.keep(known)
    if (range := wanted.format.scale.range).kind == "delayed":
        # A graph without a backward leaves the history alone.
        trains = any("tangents" in node.name for node in graph.find_nodes(op="placeholder"))
        store, row = plan.history
        past = (known, store, row + index, int(range.value), trains)
        known = add_node(graph, ops.delayed, past, like=product)
        meta.keep(known)
    return None if known is base else known


def _share(plan: Plan, index: int) -> tuple[object, ...]:
    """Return the last arguments of `shared_amax`, nothing if an operand's range is its own."""
    wanted, part = plan.operands[index], plan.parts[index] if plan.parts else None
    delayed = wanted.format is not None and wanted.format.scale.range.kind == "delayed"
    if delayed and plan.processes is not None and plan.processes.everyone:
        return (False, plan.processes.everyone)  # one history, the same on every process
    if part is None or not shares_range(wanted, part):
        return ()
    return (rows_are_cut(wanted, part), part.group)
