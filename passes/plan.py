"""Decide what happens at each site: the policy's word, and what the shapes and ops allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any, Literal

from torch.fx import Node

from qgraph.compat import symbolic
from qgraph.errors import PolicyError
from qgraph.formats import Block
from qgraph.ops import row_of
from qgraph.passes.graph.places import Layer
from qgraph.passes.graph.targets import argument_node, is_grouped, value_of
from qgraph.passes.sites.attention import quantizes_attention
from qgraph.passes.sites.convolution import cannot_block
from qgraph.passes.sites.processes import Processes
from qgraph.passes.sites.site import GraphFacts, Site
from qgraph.passes.sites.splits import Parts, check_parts, parts_of
from qgraph.policy import HIGH, OperandPolicy, Policy, decide

Status = Literal["quantized", "kept", "unsupported", "unmatched"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens at one site, and why.

    `operands` are in argument order and empty unless the site is quantized. `reason` says why
    it is not; `notes` say what a reader should know although it is. `history` is where the amaxes
    of past steps are kept: the store, and the row of the first operand. `lowering` says how the
    target `native` computes it, `lowered` is the node that does. `parts` are how the operands lie on
    several processes.
    """

    site: Site
    status: Status
    operands: tuple[OperandPolicy, ...] = ()
    rule: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    history: tuple[int, int] = (-1, 0)
    lowering: str = ""
    parts: tuple[Parts | None, ...] = ()
    processes: Processes | None = None
    lowered: Node | None = field(default=None, repr=False, compare=False)

    @property
    def stochastic(self) -> bool:
        """Whether an operand takes random bits each step."""
        return any(operand.random for operand in self.operands)


def draws_in_forward(plans: Sequence[Plan]) -> bool:
    """Whether a product of the forward takes random bits, so that the step's seed is drawn there."""
    return any(plan.stochastic and plan.site.role == "fprop" for plan in plans)


def plan_sites(
    sites: Sequence[Site], policy: Policy, facts: GraphFacts | None = None
) -> tuple[Plan, ...]:
    """Return one plan for each site, in order; `facts` say where histories are kept.

    Raises: PolicyError if a product does not fit its format and the policy says `ragged: error`.
    """
    plans = [_plan(site, policy) for site in sites]
    _check_ragged(plans, policy)
    if facts is not None and facts.processes is not None:
        plans = _shared(plans, policy, facts.processes)
    if facts is None or facts.history is None:
        return tuple(plans)
    numbers = {name: number for number, name in enumerate(sorted(set(facts.modules.values())))}
    seen: Counter[tuple[str, str]] = Counter()
    for index, plan in enumerate(plans):
        site = plan.site
        row = row_of(numbers.get(site.module, 0), site.role, seen[site.module, site.role], 0)
        seen[site.module, site.role] += 1
        plans[index] = replace(plan, history=(facts.history, row))
    return tuple(plans)


def open_plans(sites: Sequence[Site]) -> tuple[Plan, ...]:
    """Return plans under which every product may be quantized later, and none is yet.

    For trying formats out: what such a product needs of the graph is done, as under a real plan.
    """
    return tuple(Plan(site=site, status="quantized", operands=(HIGH, HIGH)) for site in sites)


def _shared(plans: Sequence[Plan], policy: Policy, processes: Processes) -> list[Plan]:
    found = parts_of([plan.site for plan in plans], processes)
    for plan, parts in zip(plans, found, strict=True):
        check_parts(plan.site, plan.operands, parts, policy.path or policy.name)
    return [
        replace(plan, parts=parts, processes=processes)
        for plan, parts in zip(plans, found, strict=True)
    ]


def _check_ragged(plans: Sequence[Plan], policy: Policy) -> None:
    ragged = [(p.site, why) for p in plans if p.operands and (why := _ragged(p.site, p.operands))]
    if policy.ragged != "error" or not ragged:
        return
    site, why = ragged[0]
    more = f", and {len(ragged) - 1} more" if len(ragged) > 1 else ""
    raise PolicyError(
        policy.path or policy.name,
        "ragged",
        f"{site.role} of '{site.module}' does not fit its format: {why}{more}",
        "write ragged: pad or keep, or a rule that leaves these products out",
    )


def _plan(site: Site, policy: Policy) -> Plan:
    decision = decide(policy, site)
    rule = decision.rule.text if decision.rule else ""
    if decision.rule is not None and decision.rule.keep:
        return Plan(site=site, status="kept", rule=rule, reason=decision.reason)
    if site.unsupported:
        why = _WHOLE if _stays_whole(site, policy) else site.unsupported
        return Plan(site=site, status="unsupported", rule=rule, reason=why)
    if decision.rule is None:
        return Plan(site=site, status="unmatched", reason=decision.reason)
    if decision.reason:
        return Plan(site=site, status="kept", rule=rule, reason=decision.reason)
    if misfit := _misfit(site, decision.operands):
        return Plan(site=site, status="unsupported", rule=rule, reason=misfit)
    ragged = _ragged(site, decision.operands)
    if ragged and policy.ragged == "keep":
        return Plan(
            site=site,
            status="kept",
            rule=rule,
            reason=f"{ragged}, and the policy says ragged: keep",
        )
    notes: tuple[str, ...] = (f"{ragged}: the last block is padded with zeros",) if ragged else ()
    if site.op == "conv" and not all(operand.gradient.straight for operand in decision.operands):
        notes += ("gradients of quantizers are straight through in convolutions",)
    return Plan(site=site, status="quantized", operands=decision.operands, rule=rule, notes=notes)


_WHOLE = "fused attention inside a call that cannot be taken apart: its qk and pv stay high"


def _stays_whole(site: Site, policy: Policy) -> bool:
    """Whether fused attention is left although the policy quantizes its products."""
    at = Layer(module=site.module, block=site.block, block_count=site.block_count, part=site.part)
    return site.op == "sdpa" and policy.quantizes and quantizes_attention(policy, at)


def whole_attention(plans: Sequence[Plan]) -> list[str]:
    """Return the modules whose fused attention is left although the policy quantizes its products."""
    return sorted({plan.site.module for plan in plans if plan.reason == _WHOLE})


def _misfit(site: Site, operands: tuple[OperandPolicy, ...]) -> str:
    """Return why blocks would not lie in one matrix: of a group of channels, or of an expert's rows."""
    for operand, wanted in zip(site.operands, operands, strict=True):
        if wanted.format is None:
            continue
        why = ""
        if site.op == "conv":
            why = cannot_block(site.node, operand, wanted.format.block)
        elif is_grouped(site.node) and site.role != "wgrad" and operand.kind != "weight":
            why = _across_experts(wanted.format.block)
        if why:
            return why
    return ""


def _across_experts(block: Block) -> str:
    """Return why a block of rows that are sorted by expert does not lie in one expert's, or nothing."""
    if block.across == 1 or str(block) == "tensor":
        return ""
    return f"blocks {block} of rows would lie across the rows of several experts"


def _ragged(site: Site, operands: tuple[OperandPolicy, ...]) -> str:
    """Return which size is no multiple of the block, or nothing."""
    if is_grouped(site.node) and site.role == "wgrad":
        multiple = summed_multiple(operands)
        return f"an expert's rows are perhaps no multiple of {multiple}" if multiple > 1 else ""
    for operand, wanted in zip(site.operands, operands, strict=True):
        shape: Sequence[object] = value_of(argument_node(site.node, operand.argument)).shape
        size: Any = shape[operand.axis]
        along = wanted.format.block.along if wanted.format else None
        turned = wanted.transform.hadamard if wanted.transform else None
        for block in (along, turned):
            if block and not symbolic.statically_known_true(size % block == 0):
                if isinstance(size, int):
                    return f"{size} summed elements are no multiple of {block}"
                return f"the summed size {size} is dynamic, perhaps no multiple of {block}"
    return ""


def summed_multiple(operands: Sequence[OperandPolicy]) -> int:
    """Return the size that every block and rotation along the summed axis divides."""
    sizes = [1]
    for wanted in operands:
        sizes.append((wanted.format and wanted.format.block.along) or 1)
        sizes.append(wanted.transform.hadamard if wanted.transform else 1)
    return lcm(*sizes)
