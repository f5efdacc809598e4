"""Why a rule speaks about a site or does not, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, fields

from qgraph.policy import Match, Policy, Rule, SiteFacts


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
    """Return which of a match's selectors do not hold of `site`; each is held against it alone."""
    reasons = []
    for field in fields(match):
        value = getattr(match, field.name)
        if value in (None, ()) or field.name in _BLOCKS:
            continue
        if not Match(**{field.name: value}).matches(site):
            reasons.append(_text(field.name, value, site))
    if match.asks_block and not match.matches(site) and match.matches_outside_blocks(site):
        if site.block is None:
            reasons.append("the module is in no stack of blocks")
        else:
            reasons.append(f"it is block {site.block} of 0 to {(site.block_count or 1) - 1}")
    return "; ".join(reasons) or "it does not match"


_BLOCKS = ("blocks", "first_blocks", "last_blocks")


def _text(selector: str, value: Sized, site: SiteFacts) -> str:
    match selector:
        case "ops":
            return f"the op is {site.op}"
        case "roles":
            return f"the product is {site.role}"
        case "groups":
            return "the module is in no such group"
        case "modules":
            return (
                f"none of its {len(value)} modules matches" if len(value) > 1 else "another module"
            )
    return f"{selector} says otherwise"
