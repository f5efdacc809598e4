"""Cutting a joint graph into forward and backward, and what waits between the two."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule

from qgraph.compat import aot, descriptions, inductor, meta
from qgraph.passes import GraphFacts, Halves, Report, Step, names_of, run_passes
from qgraph.policy import Policy


def cut(
    joint: GraphModule, partition: aot.Cut = aot.cut_in_two
) -> tuple[GraphModule, GraphModule, int]:
    """Cut a joint graph into forward and backward where Inductor does; the graph is not changed.

    Of the forward's outputs the first, as many as the last number says, are not for the backward.
    Parameters and buffers are there in the backward anyway, so that keeping one costs nothing.
    """
    module = GraphModule(joint, copy.deepcopy(joint.graph))
    (output,) = module.graph.find_nodes(op="output")
    results = descriptions.count_results(meta.description(output))
    holders = enumerate(module.graph.find_nodes(op="placeholder"))
    state = [i for i, node in holders if descriptions.is_state(meta.description(node))]
    forward, backward = partition(
        module, (), num_fwd_outputs=results, static_lifetime_input_indices=state
    )
    return forward, backward, results


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
