"""From what was measured to a policy: which numbers rank the products, and what a budget buys."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qgraph.passes import VIEWS, argument_node
from qgraph.search.allocate import Allocation, Option, allocate
from qgraph.search.candidates import HIGH_CANDIDATE, Candidate, Measure
from qgraph.search.replay import Replay
from qgraph.search.sensitivity import Effect, Sensitivity, Unit


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A share of FLOPs that may stay high, or a mean number of bits an operand element."""

    kind: Literal["keep", "bits"]
    amount: float

    def cost(self, candidate: Candidate) -> float:
        """Return what a product of all FLOPs costs under `candidate`."""
        if self.kind == "bits":
            return candidate.bits
        return 0.0 if candidate.format else 1.0


def score(
    found: Sensitivity,
    measure: Measure,
    traces: dict[str, float] | None = None,
    replay: Replay | None = None,
) -> dict[tuple[int, str], float]:
    """Return each effect by one measure, as a number that adds up over products: errors squared.

    `wgrad`, `fisher` and `hutchinson` are of a module: its products share the number.
    """
    if measure == "gradient":
        return {key: effect.gradient_error**2 for key, effect in found.effects.items()}
    if measure == "loss":
        return {
            key: abs(effect.loss_change or effect.first_order or 0.0)
            for key, effect in found.effects.items()
        }
    own: dict[tuple[str, str], float] = {}
    for effect in found.effects.values():
        value = _of_module(effect, measure, traces or {}, replay)
        if value is not None:
            key = (effect.unit.module, effect.candidate.name)
            own[key] = own.get(key, 0.0) + value
    return {
        key: own.get((effect.unit.module, effect.candidate.name), 0.0)
        for key, effect in found.effects.items()
    }


def _of_module(
    effect: Effect, measure: Measure, traces: dict[str, float], replay: Replay | None
) -> float | None:
    unit = effect.unit
    if measure == "wgrad":
        return effect.output_error**2 if unit.role == "wgrad" else None
    if unit.role != "fprop":
        return None
    if measure == "fisher":
        return effect.fisher
    name = weight_of(replay, unit) if replay else None
    if replay is None or name is None or name not in traces:
        return None
    weight = replay.values[replay.parameters[name]].float()
    power = float(weight.square().sum())
    noise = power and power / math.pow(10, effect.sqnr.get("weight", math.inf) / 10)
    return float(0.5 * max(0.0, traces[name]) / weight.numel() * noise)


def weight_of(replay: Replay, unit: Unit) -> str | None:
    """Return the name of the parameter that a unit's weight is, through views and casts."""
    for operand in unit.sites[0].operands:
        node = argument_node(unit.sites[0].node, operand.argument)
        while operand.kind == "weight" and node.op == "call_function" and node.target in VIEWS:
            node = argument_node(node, 0)
        if operand.kind == "weight":
            return replay.name_of(node)
    return None


def choices(
    found: Sensitivity, scores: dict[tuple[int, str], float], budget: Budget
) -> tuple[tuple[tuple[Candidate, ...], ...], tuple[tuple[Option, ...], ...]]:
    """Return for each unit the candidates it may take, high first, and what each costs it.

    Under a share of FLOPs only the candidates of the fewest element bits are taken: that share is
    what it is about.
    """
    narrow = min(c.format.element.bits for c in found.candidates if c.format)
    allowed = tuple(
        c for c in found.candidates
        if budget.kind == "bits" or (c.format and c.format.element.bits == narrow)
    )  # fmt: skip
    whole = sum(unit.flops for unit in found.units) or 1
    names, numbers = [], []
    for i, unit in enumerate(found.units):
        names.append((HIGH_CANDIDATE, *allowed))
        share = unit.flops / whole
        numbers.append(
            (
                Option(error=0.0, cost=share * budget.cost(HIGH_CANDIDATE)),
                *(Option(error=scores[i, c.name], cost=share * budget.cost(c)) for c in allowed),
            )
        )
    return tuple(names), tuple(numbers)


def choose(
    found: Sensitivity, scores: dict[tuple[int, str], float], budget: Budget
) -> tuple[tuple[Candidate, ...], Allocation]:
    """Return each unit's candidate for the least summed score within the budget.

    Raises: PolicyError if the budget is below what any policy can reach.
    """
    names, numbers = choices(found, scores, budget)
    best = allocate(numbers, budget.amount)
    return tuple(own[i] for own, i in zip(names, best.taken, strict=True)), best


def choose_at_random(
    found: Sensitivity, scores: dict[tuple[int, str], float], budget: Budget, seed: int
) -> tuple[tuple[Candidate, ...], Allocation]:
    """Return a random policy that spends the same budget: random products get their best while it lasts."""
    names, numbers = choices(found, scores, budget)
    draw = random.Random(seed)
    taken = [min(range(len(own)), key=lambda i, own=own: own[i].cost) for own in numbers]  # type: ignore[misc]
    left = budget.amount - sum(own[i].cost for own, i in zip(numbers, taken, strict=True))
    order = [*range(len(numbers))]
    draw.shuffle(order)
    for number in order:
        own = numbers[number]
        fits = [i for i in range(len(own)) if own[i].cost - own[taken[number]].cost <= left + 1e-12]
        pick = min(fits, key=lambda i, own=own: own[i].error)  # type: ignore[misc]
        left -= own[pick].cost - own[taken[number]].cost
        taken[number] = pick
    chosen = tuple(own[i] for own, i in zip(names, taken, strict=True))
    spent = [own[i] for own, i in zip(numbers, taken, strict=True)]
    return chosen, Allocation(
        taken=tuple(taken), error=sum(c.error for c in spent), cost=sum(c.cost for c in spent)
    )


def ranking(found: Sensitivity, scores: dict[tuple[int, str], float], name: str) -> list[int]:
    """Return the numbers of the units, the most sensitive under candidate `name` first."""
    return sorted(range(len(found.units)), key=lambda i: -scores[i, name])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two lists of numbers; 0 where one is constant."""
    ranks = []
    for values in (first, second):
        order = sorted(range(len(values)), key=lambda i, v=values: v[i])  # type: ignore[misc]
        rank = [0.0] * len(values)
        for place, i in enumerate(order):
            rank[i] = float(place)
        ranks.append(rank)
    middle = (len(first) - 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(*ranks, strict=True))
    squares = sum((a - middle) ** 2 for a in ranks[0])
    return products / squares if squares else 0.0
