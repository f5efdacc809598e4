"""The passes, in order. This is the whole rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch.fx import Graph

from qgraph.passes.joint.insert_fake_quant import insert_fake_quant
from qgraph.passes.joint.insert_gradient import insert_gradient
from qgraph.passes.joint.insert_hadamard import insert_hadamard
from qgraph.passes.joint.keep_layout import keep_layout
from qgraph.passes.joint.pad_groups import pad_groups
from qgraph.passes.joint.recompute import recompute_casts, recompute_weights
from qgraph.passes.joint.share import share_quant
from qgraph.passes.joint.split_products import join_products, split_bias, split_products
from qgraph.passes.lower.fuse import lower
from qgraph.passes.lower.lower_native import lower_native
from qgraph.passes.lower.lower_nvfp4 import lower_nvfp4
from qgraph.passes.plan import Plan, plan_sites
from qgraph.passes.sites.find import GraphFacts, find_sites
from qgraph.passes.watch.verify import verify
from qgraph.policy import Policy

Target = Literal["emulate", "native", "native-always"]
Pass = Callable[[Graph, Sequence[Plan]], None]
PASSES: tuple[tuple[str, Pass], ...] = (
    ("bias", split_bias),
    ("groups", pad_groups),
    ("gradients", insert_gradient),
    ("rotate", insert_hadamard),
    ("quantize", insert_fake_quant),
    ("share", share_quant),
    ("recompute", recompute_weights),
    ("layout", keep_layout),
    ("verify", verify),
    ("lower", lower),
    ("verify", verify),
)


def rewrite(
    graph: Graph,
    policy: Policy,
    facts: GraphFacts,
    until: str | None = None,
    target: Target = "emulate",
) -> tuple[Plan, ...]:
    """Rewrite `graph` in place as `policy` says and return what was decided at each site.

    The target `native` multiplies codes where the device can and it pays, `native-always` where it
    can; `emulate` multiplies what the codes are worth. With `until`, stop after the pass of that
    name: the graph before it is lowered, for reading.

    Raises: GraphError if a pass leaves an illegal graph.
    """
    split_products(graph)
    if policy.parameters is not None:
        recompute_casts(graph, facts)
    plans = join_products(graph, plan_sites(find_sites(graph, facts), policy, facts))
    for name, step in PASSES:
        step(graph, plans)
        if name == until:
            return plans
    if target == "emulate":
        return plans
    return lower_native(graph, lower_nvfp4(graph, plans), always=target == "native-always")
