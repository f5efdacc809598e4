"""Why a rule speaks about a site or does not, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qgraph.policy.model import Policy, Rule
from qgraph.policy.selector import Match, SiteFacts


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rule held against one site."""

    rule: Rule
    matched: bool
    why: str


def try_rules(policy: Policy, site: SiteFacts) -> Iterator[Trial]:
    """Yield the rules in order, up to the one that decides `site`."""
    for rule in policy.rules:
        matched = rule.match.matches(site)
        why = (
            ("keep high" if rule.keep else "it decides") if matched else _why_not(rule.match, site)
        )
        yield Trial(rule=rule, matched=matched, why=why)
        if matched:
            return


def _why_not(match: Match, site: SiteFacts) -> str:
    reasons = []
    if not Match(ops=match.ops).matches(site):
        reasons.append(f"the op is {site.op}")
    if not Match(modules=match.modules).matches(site):
        names = match.modules or ()
        what = f"none of its {len(names)} modules matches" if len(names) > 1 else "another module"
        reasons.append(what)
    if not Match(roles=match.roles).matches(site):
        reasons.append(f"the product is {site.role}")
    if match.asks_block and not match.matches(site) and match.matches_outside_blocks(site):
        if site.block is None:
            reasons.append("the module is in no stack of blocks")
        else:
            reasons.append(f"it is block {site.block} of 0 to {(site.block_count or 1) - 1}")
    return "; ".join(reasons)
