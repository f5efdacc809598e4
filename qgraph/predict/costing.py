"""What a policy costs on a device: FLOPs, bytes, and a time, from shapes and published peaks.

A product takes the longer of its arithmetic and its bytes; quantizing an operand takes its bytes;
the rest takes the bytes of ideally fused kernels, and the optimizer those of AdamW. Nothing overlaps.
Products run as the target `native` runs them on such a device; what its matrix unit could take
besides is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from torch.fx import Node

from qgraph.ops import Device, Kind, machine_of
from qgraph.passes import (
    RESHAPES,
    Plan,
    argument_node,
    below_permutes,
    part_of,
    plan_sites,
    sizes_of,
)
from qgraph.policy import ROLES, OperandPolicy, Policy, check_blocks
from qgraph.predict.speed import runs_as, speed_of, stored_kind, unit_kind
from qgraph.predict.step import StepOutline

HIGH_BYTES = 2  # bf16
# AdamW: master, m, v and gradient in fp32 are read; the first three and bf16 weights written.
_OPTIMIZER = 30
Runs = Callable[[Plan], Kind]  # what a product multiplies


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a device reaches of its peaks, and bytes an element of what is kept beside the weights."""

    matrix_efficiency: float = 0.7
    bandwidth_efficiency: float = 0.8
    weight_bytes: int = HIGH_BYTES
    master_bytes: int = 4
    gradient_bytes: int = 4
    optimizer_bytes: int = 8


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """Products that are alike in what they are and how they run.

    `runs_as` is what is multiplied, and `reason` why it is not codes; `unit` is what the device's matrix
    unit could multiply, and `unit_reason` why it is not codes, or how they are scaled.
    """

    part: str
    role: str
    formats: str
    runs_as: str
    reason: str
    unit: str
    unit_reason: str
    count: int
    flops: float
    seconds: float


def cost(
    step: StepOutline,
    plans: Sequence[Plan],
    device: Device,
    speeds: dict[Kind, float],
    assumed: Assumptions = Assumptions(),
) -> dict[str, Any]:
    """Return the cost of one training step under `plans` beside that in high precision, as plain data.

    Keys: `lines` (see `CostLine`), `flops`, `split` (forward FLOPs of the blocks' parts, as shares),
    `relative` (cost of the blocks' products at `speeds`, bf16 being 1), `memory` and `time` (each with
    `high` and `policy`), `speedup`, `products_speedup`, `fits`, `assumptions`; `unit` (`time`, `memory`,
    `speedup` and `products_speedup` if the matrix unit multiplied all that it takes).
    """
    machine = machine_of(device)

    def runs(plan: Plan) -> Kind:
        return runs_as(plan, machine)[0]

    def unit(plan: Plan) -> Kind:
        return unit_kind(device, plan.operands)[0]

    lines = _lines(plans, device, assumed)
    high = [Plan(site=plan.site, status="kept") for plan in plans]
    times = {
        "high": _times(step, high, runs, device, assumed),
        "policy": _times(step, plans, runs, device, assumed),
    }
    could = _times(step, plans, unit, device, assumed)
    memory = {
        "high": _memory(step, high, assumed),
        "policy": _memory(step, _codes_alone(plans, runs), assumed),
    }
    blocks = [plan for plan in plans if plan.site.block is not None]
    return {
        "flops": sum(model_flops(plan) for plan in plans),
        "lines": [asdict(line) for line in lines],
        "split": _split(blocks),
        "relative": _relative(blocks, speeds),
        "speeds": dict(speeds),
        "memory": memory,
        "time": times,
        **_faster(times["high"], times["policy"]),
        "unit": {
            "time": could,
            "memory": _memory(step, _codes_alone(plans, unit), assumed),
            **_faster(times["high"], could),
        },
        "fits": sum(memory["policy"].values()) <= device.memory,
        "assumptions": asdict(assumed),
    }


def _faster(high: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    return {
        "speedup": sum(high.values()) / sum(own.values()),
        "products_speedup": high["products"] / own["products"],
    }


def model_flops(plan: Plan) -> float:
    """Return the product's FLOPs without what fused attention computes a second time in the backward."""
    again = plan.site.op == "sdpa" and plan.site.role != "fprop"
    return plan.site.flops * (0.8 if again else 1.0)


def _lines(plans: Sequence[Plan], device: Device, assumed: Assumptions) -> list[CostLine]:
    parts = part_of([plan.site for plan in plans])
    machine = machine_of(device)
    groups: dict[tuple[str, str, str, Kind, str, Kind, str], list[Plan]] = {}
    for plan in plans:
        kinds = (*runs_as(plan, machine), *unit_kind(device, plan.operands))
        key = (parts[plan.site.number], plan.site.role, _formats(plan.operands), *kinds)
        groups.setdefault(key, []).append(plan)
    return [
        CostLine(
            part=part, role=role, formats=formats, runs_as=kind, reason=reason, unit=unit,
            unit_reason=unit_reason, count=len(group), flops=sum(map(model_flops, group)),
            seconds=sum(_product_time(plan, kind, device, assumed) for plan in group),
        )
        for (part, role, formats, kind, reason, unit, unit_reason), group in groups.items()
    ]  # fmt: skip


def _formats(operands: tuple[OperandPolicy, ...]) -> str:
    names = [operand.format.element.name if operand.format else "high" for operand in operands]
    return " x ".join(dict.fromkeys(names)) or "high"


def _split(plans: Sequence[Plan]) -> dict[str, float]:
    parts = part_of([plan.site for plan in plans])
    found: Counter[str] = Counter()
    for plan in plans:
        if plan.site.role == "fprop":
            found[parts[plan.site.number]] += int(model_flops(plan))
    whole = sum(found.values()) or 1
    return {part: flops / whole for part, flops in found.most_common()}


def _relative(plans: Sequence[Plan], speeds: dict[Kind, float]) -> dict[str, float]:
    """Return the products' cost over bf16's, forward, backward and both, by their formats alone."""
    found = {}
    for name, roles in (
        ("forward", ("fprop",)),
        ("backward", ("dgrad", "wgrad")),
        ("both", ROLES),
    ):
        chosen = [plan for plan in plans if plan.site.role in roles]
        whole = sum(map(model_flops, chosen)) or 1.0
        taken = sum(model_flops(p) / speed_of(speeds, stored_kind(p.operands)) for p in chosen)
        found[name] = taken / whole
    return found


def _times(
    step: StepOutline, plans: Sequence[Plan], runs: Runs, device: Device, assumed: Assumptions
) -> dict[str, float]:
    bandwidth = device.bandwidth * assumed.bandwidth_efficiency
    weights = sum(step.parameters.values())
    return {
        "products": sum(_product_time(plan, runs(plan), device, assumed) for plan in plans),
        "quantization": _quantized_bytes(plans, runs) / bandwidth,
        "elementwise": sum(step.traffic.values()) / bandwidth,
        "optimizer": _OPTIMIZER * weights / bandwidth,
    }


def _product_time(plan: Plan, kind: Kind, device: Device, assumed: Assumptions) -> float:
    batch, m, n, k = plan.site.shape
    wanted = plan.operands or (OperandPolicy(), OperandPolicy())
    first, second = (_bits(o) / 8 if kind != "bf16" else HIGH_BYTES for o in wanted)
    moved = batch * (m * k * first + k * n * second + m * n * HIGH_BYTES)
    arithmetic = plan.site.flops / (device.peaks[kind] * assumed.matrix_efficiency)
    return max(arithmetic, moved / (device.bandwidth * assumed.bandwidth_efficiency))


def _bits(operand: OperandPolicy) -> float:
    return operand.format.bits_per_element if operand.format else 8.0 * HIGH_BYTES


def _quantized_bytes(plans: Sequence[Plan], runs: Runs) -> float:
    """Return bytes moved to quantize each operand once; products that read the same codes share them."""
    total, seen = 0.0, set()
    for plan in plans:
        kind = runs(plan)
        for operand, wanted in zip(plan.site.operands, plan.operands, strict=False):
            if wanted.format is None:
                continue
            base, order = below_permutes(argument_node(plan.site.node, operand.argument))
            block = wanted.format.block
            axis = 0 if block.across == block.along else order[operand.axis]
            own = plan.site.number if wanted.random else -1
            key = (_below_reshapes(base), *sizes_of(base), plan.site.block, str(wanted), axis, own)
            if key in seen:
                continue
            seen.add(key)
            elements = prod(sizes_of(base))
            whole = wanted.format.two_level or (block.across is None and block.along is None)
            read = (
                elements * HIGH_BYTES * (2 if whole else 1)
            )  # once more for the largest magnitude
            stored = wanted.format.bits_per_element / 8 if kind != "bf16" else HIGH_BYTES
            total += read + elements * stored
    return total


def _below_reshapes(node: Node) -> Node:
    """Return what a node shows in another shape: q, k and v reshape one input each for itself."""
    while node.op == "call_function" and node.target in RESHAPES:
        node = argument_node(node, 0)
    return node


def _codes_alone(plans: Sequence[Plan], runs: Runs) -> list[Plan]:
    """Return the plans with those products high whose values are multiplied: nothing is kept as codes."""
    return [plan if runs(plan) != "bf16" else replace(plan, operands=()) for plan in plans]


def _memory(step: StepOutline, plans: Sequence[Plan], assumed: Assumptions) -> dict[str, float]:
    weights = sum(step.parameters.values())
    by_number = {plan.site.number: plan for plan in plans}
    kept = sum(
        _kept_bytes(saved.bytes, saved.elements, saved.readers, by_number) for saved in step.saved
    )
    return {
        "weights": weights * assumed.weight_bytes - _weights_saved(plans, assumed),
        "master weights": float(weights * assumed.master_bytes),
        "gradients": float(weights * assumed.gradient_bytes),
        "optimizer": float(weights * assumed.optimizer_bytes),
        "activations": kept,
    }


def _kept_bytes(
    plain: int, elements: int, readers: tuple[tuple[int, int], ...] | None, plans: dict[int, Plan]
) -> float:
    """Return the bytes of a kept tensor: its codes where only quantized products read it."""
    formats = set()
    for number, index in readers or ():
        operands = plans[number].operands
        formats.add(operands[index].format if operands else None)
    if not formats or None in formats:
        return float(plain)
    codes = sum(fmt.bits_per_element / 8 for fmt in formats if fmt is not None)
    return min(float(plain), elements * codes)


def _weights_saved(plans: Sequence[Plan], assumed: Assumptions) -> float:
    """Return the bytes that codes of weights take less than their bf16 copies."""
    formats: dict[tuple[object, int | None], set[tuple[str, int, float]]] = {}
    sizes: dict[tuple[object, int | None], int] = {}
    for plan in plans:
        for index, operand in enumerate(plan.site.operands):
            if operand.kind != "weight":
                continue
            base, order = below_permutes(argument_node(plan.site.node, operand.argument))
            key = (base, plan.site.block)
            sizes[key] = prod(sizes_of(base))
            wanted = plan.operands[index] if plan.operands else OperandPolicy()
            bits = _bits(wanted) if wanted.format else 8.0 * assumed.weight_bytes
            block = wanted.format.block if wanted.format else None
            free = block is None or block.across == block.along
            axis = 0 if free else order[operand.axis]
            formats.setdefault(key, set()).add((str(wanted.format), axis, bits))
    saved = 0.0
    for weight, found in formats.items():
        saved += sizes[weight] * (assumed.weight_bytes - sum(bits for *_, bits in found) / 8)
    return saved


def plan_step(step: StepOutline, policy: Policy) -> tuple[Plan, ...]:
    """Return what `policy` does at each product of the step.

    Raises: PolicyError if it names blocks the model has not, or demands sizes that do not fit.
    """
    check_blocks(policy, step.sites)
    return plan_sites(step.sites, policy)
