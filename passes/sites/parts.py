"""Which part of a transformer each product belongs to: attention, its linears, the feed-forward, the head.

Told by what stands together: linears under a module that multiplies queries and keys are attention's.
"""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.passes.sites.site import Site

CORE, LINEARS, FEED_FORWARD, OUTSIDE = (
    "attention core", "attention linears", "feed-forward", "outside blocks",
)  # fmt: skip
_CORE = ("sdpa", "qk", "pv")


def part_of(sites: Sequence[Site]) -> dict[int, str]:
    """Return the part of each site, by its number."""
    attention = {_home(site) for site in sites if site.op in _CORE and site.block is not None}
    return {site.number: _part(site, attention) for site in sites}


def _part(site: Site, attention: set[str]) -> str:
    if site.block is None:
        return OUTSIDE
    if site.op in _CORE:
        return CORE
    inside = any(f"{site.module}.".startswith(f"{home}.") for home in attention)
    return LINEARS if inside else FEED_FORWARD


def _home(site: Site) -> str:
    """Return the module that holds an attention: `attention` of BERT's `attention.self`."""
    parent, _, _ = site.module.rpartition(".")
    return site.module if parent.endswith(f".{site.block}") else parent
