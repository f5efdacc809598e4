"""What quantizing each product alone does to one training step: to its result, the loss, the gradient.

Every number comes from real operands: the captured step runs once on a batch, and then again from the
product on, with its operands quantized. Where time does not allow that for each product and format, the
gradient's error is scaled from the same product under another format, or from its like, and said to be.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qgraph import ops
from qgraph.compat import meta
from qgraph.formats import parse_format
from qgraph.numerics.blocks import REFERENCE, block_scales, scale_tiles
from qgraph.numerics.tiles import cut
from qgraph.ops import cpu
from qgraph.passes import Plan, Site
from qgraph.passes.graph.targets import argument_node, is_grouped
from qgraph.search.candidates import Candidate
from qgraph.search.replay import Replay

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Products that a rule cannot tell apart: those of one module, op and role."""

    module: str
    op: str
    role: str
    block: int | None
    sites: tuple[Site, ...] = field(repr=False)

    @property
    def flops(self) -> int:
        """FLOPs of them all."""
        return sum(site.flops for site in self.sites)


@dataclass(kw_only=True)
class Effect:
    """What one candidate does to one unit's step, the rest being high.

    `sqnr` (dB), `underflow` and `clipped` (shares) are by kind of operand. `output_error` is the
    error of the product, `gradient_error` that of the whole gradient, both relative to their norm.
    `loss_change` is in nats; `first_order` and `fisher` are its estimates from the output's gradient, of
    forward products. `measured` says whether the gradient's error was measured, or scaled.
    """

    unit: Unit
    candidate: Candidate
    sqnr: dict[str, float] = field(default_factory=dict)
    underflow: dict[str, float] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)
    output_error: float = 0.0
    first_order: float | None = None
    fisher: float | None = None
    loss_change: float | None = None
    gradient_error: float = math.nan
    measured: bool = False
    kept_gradient_error: float | None = None  # of everything quantized but this


@dataclass(kw_only=True)
class Sensitivity:
    """All effects, and the step they were measured on."""

    loss: float
    units: tuple[Unit, ...]
    left_out: tuple[Site, ...]
    effects: dict[tuple[int, str], Effect]  # by number of unit, and candidate's name
    candidates: tuple[Candidate, ...]
    all_gradient_error: float | None = None  # of everything quantized to the first candidate
    all_loss_change: float | None = None


def units_of(sites: Sequence[Site]) -> tuple[Unit, ...]:
    """Return the units of the products that can be measured, in graph order."""
    groups: dict[tuple[str, str, str], list[Site]] = {}
    for site in sites:
        if site.operands and not site.unsupported and not is_grouped(site.node):
            groups.setdefault((site.module, site.op, site.role), []).append(site)
    return tuple(
        Unit(module=module, op=op, role=role, block=group[0].block, sites=tuple(group))
        for (module, op, role), group in groups.items()
    )


def measure(
    replay: Replay, candidates: Sequence[Candidate], say: Say, seconds: float = 120.0, seed: int = 0
) -> Sensitivity:
    """Return what each candidate does to each unit of the step that `replay` holds.

    Statistics of operands and products are always measured. `seconds` bounds the time spent on running
    the step again: first each unit under the first candidate, then the other candidates, then
    everything quantized but one unit. `seed` draws the order of units and the bits of rounding.
    """
    units = units_of(replay.sites)
    whole = sum(_square(g) for g in replay.gradients().values())
    left_out = tuple(s for s in replay.sites if not any(s in unit.sites for unit in units))
    found = Sensitivity(
        loss=replay.loss, units=units, left_out=left_out, effects={}, candidates=tuple(candidates)
    )
    say(f"statistics of {len(units)} products under {len(candidates)} formats")
    for number, unit in enumerate(units):
        for candidate in candidates:
            found.effects[number, candidate.name] = _local(replay, unit, candidate, seed)
    end = time.monotonic() + seconds
    order = [*range(len(units))]
    random.Random(seed).shuffle(order)
    samples = _samples(units, order)
    say("each product quantized alone, run to the end")
    for candidate in candidates:
        for number in order:
            wgrad = units[number].role == "wgrad"  # only its own gradient changes: quick
            sample = number in samples and candidate is candidates[0]
            if wgrad or sample or time.monotonic() < end - seconds / 3:
                _alone(replay, found.effects[number, candidate.name], whole, seed)
    _scale(found)
    say("everything quantized but one")
    _keep_each(replay, found, whole, order, end, seed)
    return found


def run_policy(
    replay: Replay, chosen: Sequence[tuple[Unit, Candidate]], seed: int = 0
) -> tuple[float, float]:
    """Return the relative error of the gradient and the change of the loss under all of `chosen` at once."""
    plans = [plan for unit, candidate in chosen for plan in _plans(unit, candidate)]
    whole = sum(_square(g) for g in replay.gradients().values())
    if not plans:
        return 0.0, 0.0
    torch.manual_seed(seed)
    with replay.quantized(plans) as new:
        changed = replay.rerun(new)
    return math.sqrt(_gradient_square(replay, changed) / whole), replay.loss_of(
        changed
    ) - replay.loss


def _plans(unit: Unit, candidate: Candidate) -> list[Plan]:
    if candidate.format is None:
        return []
    return [
        Plan(site=site, status="quantized", operands=candidate.operands(site.operand_kinds))
        for site in unit.sites
    ]


def _local(replay: Replay, unit: Unit, candidate: Candidate, seed: int) -> Effect:
    """Return the statistics of a unit's operands and results."""
    effect = Effect(unit=unit, candidate=candidate)
    error = size = 0.0
    for site in unit.sites:
        torch.manual_seed(seed)
        plan = Plan(site=site, status="quantized", operands=candidate.operands(site.operand_kinds))
        with replay.quantized([plan]) as new:
            changed = replay.rerun(new, stop=site.node)
            for kind, source, node in _quantizers(site):
                before = changed if source in changed else replay.values
                _operand_statistics(effect, kind, before[source], changed[node], node)
        result, exact = _main(changed[site.node]), _main(replay.values[site.node])
        error += _square(result - exact)
        size += _square(exact)
        _estimate_loss(replay, effect, site, (result - exact).float())
    effect.output_error = math.sqrt(error / size) if size else 0.0
    return effect


def _quantizers(site: Site) -> Iterator[tuple[str, Node, Node]]:
    """Yield each operand's kind, what is quantized, and the node that quantizes it."""
    for operand in site.operands:
        node = argument_node(site.node, operand.argument)
        while node.target is not ops.fake_quant and node.all_input_nodes:
            node = node.all_input_nodes[0]
        if node.target is ops.fake_quant:
            yield operand.kind, argument_node(node, 0), node


def _operand_statistics(effect: Effect, kind: str, x: Tensor, q: Tensor, node: Node) -> None:
    x, q = x.float(), q.float()
    noise, power = _square(x - q), _square(x)
    effect.sqnr[kind] = 10 * math.log10(power / noise) if noise and power else math.inf
    nonzero = x != 0
    count = max(1, int(nonzero.sum()))
    effect.underflow[kind] = int((nonzero & (q == 0)).sum()) / count
    fmt, axis = parse_format(str(node.args[1])), int(node.args[2])  # type: ignore[arg-type]
    effect.clipped[kind] = 0.0
    if not fmt.scale.random and fmt.scale.range.kind != "delayed":
        kernels = cpu.KERNELS if cpu.supports(x) else REFERENCE
        scales = block_scales(x, fmt, axis, None, kernels)
        scaled = scale_tiles(cut(x.movedim(axis, -1), fmt.block), scales)
        outside = (scaled > fmt.element.max) | (scaled < fmt.element.min)
        effect.clipped[kind] = int(outside.sum()) / count


def _estimate_loss(replay: Replay, effect: Effect, site: Site, change: Tensor) -> None:
    """Add what the output's gradient says of the loss: g·d, and N/2 times the sum of (g_t·d_t)²."""
    if site.role != "fprop" or (gradient := _output_gradient(replay, site, change)) is None:
        return
    by_row = (gradient.float() * change).sum(-1)
    effect.first_order = (effect.first_order or 0.0) + float(by_row.sum())
    effect.fisher = (effect.fisher or 0.0) + 0.5 * by_row.numel() * float(by_row.square().sum())


def _output_gradient(replay: Replay, site: Site, change: Tensor) -> Tensor | None:
    """Return the gradient of a forward product's result, as one of its backward products read it."""
    for other in replay.sites:
        if other.role == "fprop" or meta.sequence(other.node) != meta.sequence(site.node):
            continue
        for operand in other.operands:
            value = replay.values[argument_node(other.node, operand.argument)]
            if operand.kind != "grad_output":
                continue
            if value.shape == change.shape and other.role == "dgrad":
                return value  # type: ignore[no-any-return]
            if value.dim() == 2 and value.shape[::-1] == change.shape:
                return value.T  # type: ignore[no-any-return]
    return None


def _alone(replay: Replay, effect: Effect, whole: float, seed: int) -> None:
    torch.manual_seed(seed)
    with replay.quantized(_plans(effect.unit, effect.candidate)) as new:
        changed = replay.rerun(new)
    effect.loss_change = replay.loss_of(changed) - replay.loss
    effect.gradient_error = math.sqrt(_gradient_square(replay, changed) / whole)
    effect.measured = True


def _samples(units: Sequence[Unit], order: Sequence[int]) -> set[int]:
    """Return a unit of each layer and role, from some block: measured however little time there is."""
    first: dict[tuple[str, ...], int] = {}
    for number in order:
        _, layer, _ = _likes(units[number])
        first.setdefault(layer, number)
    return {*first.values()}


def _scale(found: Sensitivity) -> None:
    """Fill in the gradient's error where it was not measured.

    A small error of a product does to the gradient what its size says. The ratio is that of the
    same unit under another candidate, or the median of the same layer in other blocks, or of its role.
    """
    ratios: dict[tuple[str, ...], list[float]] = {}
    for effect in found.effects.values():
        if effect.measured and effect.output_error > 0:
            for key in _likes(effect.unit):
                ratios.setdefault(key, []).append(effect.gradient_error / effect.output_error)
    for effect in found.effects.values():
        if not effect.measured:
            like = next((ratios[key] for key in _likes(effect.unit) if key in ratios), [1.0])
            effect.gradient_error = effect.output_error * sorted(like)[len(like) // 2]


def _likes(unit: Unit) -> tuple[tuple[str, ...], ...]:
    """Return what a unit is alike to, the nearest first."""
    layer = unit.module.replace(f".{unit.block}.", ".*.")
    return (unit.role, unit.op, unit.module), (unit.role, unit.op, layer), (unit.role,)


def _keep_each(
    replay: Replay, found: Sensitivity, whole: float, order: list[int], end: float, seed: int
) -> None:
    first = found.candidates[0]
    torch.manual_seed(seed)
    with replay.quantized([p for unit in found.units for p in _plans(unit, first)]) as new:
        everything = replay.rerun(new)
        found.all_gradient_error = math.sqrt(_gradient_square(replay, everything) / whole)
        found.all_loss_change = replay.loss_of(everything) - replay.loss
        for number in order:
            if time.monotonic() > end:
                return
            with replay.restored(found.units[number].sites) as nodes:
                changed = {**everything, **replay.rerun(nodes, below=everything)}
            error = math.sqrt(_gradient_square(replay, changed) / whole)
            found.effects[number, first.name].kept_gradient_error = error


def _gradient_square(replay: Replay, changed: dict[Node, Any]) -> float:
    before, after = replay.gradients(), replay.gradients(changed)
    return sum(_square(after[n] - before[n]) for n in before if after[n] is not before[n])


def _main(value: Any) -> Tensor:
    """Return a product's result; of a convolution's backward, the one that is there."""
    if isinstance(value, Tensor):
        return value
    return next(item for item in value if item is not None)  # type: ignore[no-any-return]


def _square(x: Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))
