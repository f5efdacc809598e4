"""Find the products of the graph, and decide what happens at each."""

from __future__ import annotations

from qgraph.passes.plan import plan_sites
from qgraph.passes.sites.find import find_sites
from qgraph.passes.step import Step


def plan_products(step: Step) -> None:
    """Give the step its plans, one a product, in graph order.

    Raises: PolicyError as `plan_sites`.
    """
    step.plans = plan_sites(find_sites(step.graph, step.facts), step.policy, step.facts)
