"""Cutting a joint graph into forward and backward, and what waits between the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule

from qgraph.compat import aot, inductor
from qgraph.passes import GraphFacts, Halves, Report, Step, names_of, run_passes
from qgraph.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Partitioner(inductor.CustomPartitionerFn):
    """Torch's own partitioner, and then the policy's stash on the two graphs.

    `key` is that of Inductor's cache; `frame` is the number of the code that was captured.
    """

    policy: Policy
    report: Report
    facts: Callable[[Graph], GraphFacts]
    frame: int | None
    key: str

    def __call__(
        self, gm: GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        """Return the forward and the backward."""
        forward, backward = aot.cut_in_two(gm, joint_inputs, **kwargs)
        if not self.policy.stash:
            return forward, backward
        start = time.perf_counter()
        halves = Halves(
            forward=forward.graph, backward=backward.graph, results=kwargs["num_fwd_outputs"]
        )
        facts = self.facts(gm.graph)
        step = Step(graph=gm.graph, policy=self.policy, facts=facts, halves=halves)
        self.report.saved[self.frame] = run_passes(step, names_of("halves")).saved
        forward.recompile()
        backward.recompile()
        self.report.pass_seconds += time.perf_counter() - start
        return forward, backward

    def uuid(self) -> str:
        """Return the key of code built with this policy."""
        return self.key
