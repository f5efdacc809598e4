"""Cutting a joint graph into forward and backward, and what waits between the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule

from qgraph.compat import aot, inductor
from qgraph.errors import GraphError, QGraphError
from qgraph.passes import GraphFacts, Report, stash
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
        try:
            self.report.saved[self.frame] = stash(
                forward.graph,
                backward.graph,
                kwargs["num_fwd_outputs"],
                self.policy.stash,
                self.facts(gm.graph),
            )
        except QGraphError:
            raise
        except Exception as error:  # Dynamo takes some errors for a reason to run eagerly
            raise GraphError(f"the stash failed on this graph: {error!r}") from error
        forward.recompile()
        backward.recompile()
        self.report.pass_seconds += time.perf_counter() - start
        return forward, backward

    def uuid(self) -> str:
        """Return the key of code built with this policy."""
        return self.key
