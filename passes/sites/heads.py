"""Which products make the scores of a vocabulary: known by structure, as no name is sure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qgraph.passes.graph.targets import argument_node, root_of
from qgraph.passes.sites.site import GraphFacts, Site

_WRAPPED = ".base_layer"  # what adapters call the layer that they wrap


def mark_heads(sites: Iterable[Site], facts: GraphFacts) -> tuple[Site, ...]:
    """Return `sites`, heads marked as such, with their backward.

    A head is a module that the model names as one, a product with an embedding's weight, or outside of
    blocks one with as many outputs as the largest embedding has rows, and fewer inputs.
    """
    known = tuple(sites)
    forward = [site for site in known if site.role == "fprop" and _is_head(site, facts)]
    heads, pairs = {site.number for site in forward}, {site.sequence for site in forward} - {None}

    def is_head(site: Site) -> bool:
        if site.module.removesuffix(_WRAPPED) in facts.heads:
            return True
        return site.number in heads or (site.role != "fprop" and site.sequence in pairs)

    return tuple(replace(site, part="head") if is_head(site) else site for site in known)


def _is_head(site: Site, facts: GraphFacts) -> bool:
    if site.op != "linear":
        return False
    roots = [
        root_of(argument_node(site.node, operand.argument)).name
        for operand in site.operands
        if operand.kind == "weight"
    ]
    _, _, outputs, inputs = site.shape
    scores = site.block is None and inputs < outputs == facts.vocabulary
    return scores or any(name in facts.tables for name in roots)
