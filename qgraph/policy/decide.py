"""What a policy says about a site, and why."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qgraph.errors import PolicyError, QGraphWarning
from qgraph.policy.keys.groups import EMBEDDINGS, GROUPS, names_module
from qgraph.policy.keys.match import from_start
from qgraph.policy.keys.operand import HIGH, OperandPolicy
from qgraph.policy.keys.rules import Rule
from qgraph.policy.keys.schedule import Switch
from qgraph.policy.model import Policy
from qgraph.policy.products import SiteFacts


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to the two operands of a site, in the order of its `operand_kinds`.

    `reason` says why the site stays in high precision; it is empty where something happens.
    """

    rule: Rule | None
    operands: tuple[OperandPolicy, OperandPolicy]
    reason: str


def decide(policy: Policy, site: SiteFacts) -> Decision:
    """Return what the first rule that matches says; an operand it does not name stays high."""
    rule = first_match(policy, site)
    if rule is None:
        return Decision(rule=None, operands=(HIGH, HIGH), reason="no rule matches")
    if rule.keep:
        return Decision(rule=rule, operands=(HIGH, HIGH), reason=f"kept: {rule.title}")
    product = next((p for role, p in rule.products.items() if role == site.role), None)
    if product is None:
        reason = rule.notes.get(site.role) or f"rule {rule.number} does not name {site.role}"
        return Decision(rule=rule, operands=(HIGH, HIGH), reason=reason)
    first, second = (product.get(kind, HIGH) for kind in site.operand_kinds)
    reason = ""
    if not (first.changes or second.changes):
        kinds = " and ".join(site.operand_kinds)
        reason = f"rule {rule.number} leaves {kinds} of {site.role} high"
    return Decision(rule=rule, operands=(first, second), reason=reason)


def first_match(policy: Policy, site: SiteFacts) -> Rule | None:
    """Return the rule that decides `site`, or None."""
    return next((rule for rule in policy.rules if rule.match.matches(site)), None)


def unused_rules(policy: Policy, sites: Iterable[SiteFacts]) -> tuple[Rule, ...]:
    """Return the rules that decided none of `sites`."""
    decided = {rule.number for site in sites if (rule := first_match(policy, site))}
    return tuple(rule for rule in policy.rules if rule.number not in decided)


def why_unused(rule: Rule, sites: Iterable[SiteFacts]) -> str:
    """Return why a rule of `unused_rules` decided nothing."""
    if any(rule.match.matches(site) for site in sites):
        return "matched only sites that an earlier rule decided"
    return "matched nothing"


def check_blocks(policy: Policy, sites: Iterable[SiteFacts]) -> None:
    """Check the blocks that the rules name against the blocks the model has.

    Each rule is held against the longest stack among the sites it speaks about.

    Raises: PolicyError where a rule names a block, or a number of blocks, that no stack has.
    """
    known = tuple(sites)
    entries: tuple[Rule | Switch, ...] = (*policy.rules, *policy.schedule)
    for rule in entries:
        if not rule.match.asks_block:
            continue
        counts = [s.block_count for s in known if rule.match.matches_outside_blocks(s)]
        count = max((c for c in counts if c is not None), default=None)
        if count is not None:
            _check_rule(rule, count)


def check_named_parts(policy: Policy, layers: Iterable[SiteFacts]) -> None:
    """Check that the model has the named parts, such as ffn, that the policy quantizes.

    Warns (QGraphWarning) of each rule whose part the model lacks.

    Raises: PolicyError if that leaves no rule that quantizes.
    """
    known = tuple(layers)
    rules = [rule for rule in policy.rules if rule.quantizes]
    lacking = [rule for rule in rules if not _has_part(rule, known)]
    for rule in lacking:
        names = " or ".join(group.name for group in rule.match.groups or ())
        problem = f"this model has no module in the group {names}"
        globs = [glob for group in rule.match.groups or () for glob in group.modules]
        example = f"groups: {{{names.split()[0]}: ['*.my_{names.split()[0]}.*']}}"
        fix = f"it stands for {', '.join(globs[:3])}, ...: write {example} with this model's names"
        if len(lacking) == len(rules):
            raise PolicyError(rule.place, f"{rule.key}.group", problem, fix)
        warnings.warn(
            f"{policy.name}: rule {rule.number}: {problem}; its products are left to other rules; {fix}",
            QGraphWarning,
            stacklevel=3,
        )


def _has_part(rule: Rule, layers: Iterable[SiteFacts]) -> bool:
    groups = rule.match.groups
    return groups is None or any(g.names(s.module, s.part) for g in groups for s in layers)


def check_globs(policy: Policy, modules: Iterable[str]) -> None:
    """Warn (QGraphWarning) of each module path of a rule that names no module of the model.

    Of the names that heads and embeddings usually have, any may be missing.
    """
    known, usual = tuple(modules), {*EMBEDDINGS, *GROUPS["head"]}
    entries: tuple[Rule | Switch, ...] = (*policy.rules, *policy.schedule)
    for rule in entries:
        for glob in rule.match.modules or ():
            if glob not in usual and not any(names_module(glob, name) for name in known):
                close = difflib.get_close_matches(glob, known, n=1, cutoff=0.5)
                fix = f"did you mean {close[0]}?" if close else "`qgraph inspect` lists its modules"
                warnings.warn(
                    f"{policy.name}: {rule.key}: no module of this model is called '{glob}'; {fix}",
                    QGraphWarning,
                    stacklevel=3,
                )


def _check_rule(rule: Rule | Switch, count: int) -> None:
    for key, problem, legal in _block_faults(rule, count):
        blocks = "1 block" if count == 1 else f"{count} blocks"
        raise PolicyError(
            rule.places.get(key, rule.place),
            f"{rule.key}.match.{key}" if isinstance(rule, Switch) else f"{rule.key}.{key}",
            problem,
            f"this model has {blocks}: write {legal}",
        )


def _block_faults(rule: Rule | Switch, count: int) -> Iterator[tuple[str, str, str]]:
    for i, ends in enumerate(rule.match.blocks or ()):
        key = f"blocks[{i}]" if f"blocks[{i}]" in rule.places else "blocks"
        for block in ends:
            if not -count <= block < count:
                legal = "0" if count == 1 else f"0 to {count - 1}"
                yield key, f"block {block} is out of range", legal
        if from_start(ends[0], count) > from_start(ends[1], count):
            yield key, f"the range {ends[0]}-{ends[1]} holds no block", "the lower block first"
    for key, share in (
        ("first_blocks", rule.match.first_blocks),
        ("last_blocks", rule.match.last_blocks),
    ):
        if share is not None and share.of(count) > count:
            yield key, f"{share} blocks are more than the model has", f"0 to {count}"
