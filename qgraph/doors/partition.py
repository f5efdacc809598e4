"""Cutting a joint graph into forward and backward, and what waits between the two."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from functorch.compile import min_cut_rematerialization_partition
from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    GradAOTOutput,
    ParamAOTInput,
)
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch.fx import Graph, GraphModule

from qgraph.errors import GraphError, QGraphError
from qgraph.passes import GraphFacts, Report, stash
from qgraph.policy import Policy

_STATE = (ParamAOTInput, BufferAOTInput)
Partition = Callable[..., tuple[GraphModule, GraphModule]]


class Halves(NamedTuple):
    """A joint graph cut in two: of the forward's outputs, the first `results` are not for the backward."""

    forward: GraphModule
    backward: GraphModule
    results: int


def cut(joint: GraphModule, partition: Partition = min_cut_rematerialization_partition) -> Halves:
    """Cut a joint graph into forward and backward where Inductor does; the graph is not changed.

    Parameters and buffers are there in the backward anyway, so that keeping one costs nothing.
    """
    module = GraphModule(joint, copy.deepcopy(joint.graph))
    (output,) = module.graph.find_nodes(op="output")
    kinds = output.meta["desc"]
    results = next((i for i, d in enumerate(kinds) if isinstance(d, GradAOTOutput)), len(kinds))
    holders = enumerate(module.graph.find_nodes(op="placeholder"))
    state = [i for i, node in holders if isinstance(node.meta["desc"], _STATE)]
    forward, backward = partition(
        module, (), num_fwd_outputs=results, static_lifetime_input_indices=state
    )
    return Halves(forward=forward, backward=backward, results=results)


@dataclass(frozen=True, kw_only=True)
class Partitioner(CustomPartitionerFn):
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
        forward, backward = min_cut_rematerialization_partition(gm, joint_inputs, **kwargs)
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
