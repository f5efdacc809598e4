"""What passes work on: one training step, or a piece of one, on its way through the pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch.fx import Graph

from qgraph.passes.plan import Plan
from qgraph.passes.sites.saved import SavedTensor
from qgraph.passes.sites.site import GraphFacts
from qgraph.policy import Policy

Target = Literal["emulate", "native", "native-always"]
Stage = Literal["model", "joint", "lower", "watch", "halves"]


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Forward and backward, cut apart: the forward gives `results` results, then what it saves.

    The backward has an input of the same name for each of these.
    """

    forward: Graph
    backward: Graph
    results: int


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is looked at as the graph runs.

    `check` is the graph's own number where every quantizer is held against its definition, else 0;
    `recorder` that of telemetry, and whether it looks at products.
    """

    check: int = 0
    recorder: tuple[int, bool] | None = None


@dataclass(kw_only=True)
class Step:
    """One training step on its way through the passes, which change it in place.

    `graph` is Dynamo's own in the stage `model`, the joint graph in the stages after it; in `halves` it
    is cut apart, as `halves`. The target `native` multiplies codes where the device can and it pays,
    `native-always` where it can; `emulate` multiplies what the codes are worth. `plans` are known once
    the pass `plan` has run; `replaced` counts functions by the rule that replaced them, the numbers count
    operands that are checked, observed, and not observed.
    """

    graph: Graph
    policy: Policy
    facts: GraphFacts
    target: Target = "emulate"
    watch: Watch = Watch()
    halves: Halves | None = None
    plans: tuple[Plan, ...] = ()
    replaced: Counter[str] = field(default_factory=Counter)
    saved: list[SavedTensor] = field(default_factory=list)
    checked: int = 0
    observed: int = 0
    not_observed: int = 0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One rewrite: its name, the stage it belongs to, and what it does to a step."""

    name: str
    stage: Stage
    run: Callable[[Step], None]
