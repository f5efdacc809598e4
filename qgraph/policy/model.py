"""A resolved policy: every name in the file replaced by what it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from qgraph.errors import Place
from qgraph.policy.memory import OptimizerPolicy, ParameterPolicy, StashRule
from qgraph.policy.operands import (
    OperandPolicy,
    format_entry,
    operand_entry,
    operand_facts,
    transform_facts,
)
from qgraph.policy.selector import Match, Role, match_entry, percent
from qgraph.policy.timed import Monitor, Switch

Ragged = Literal["pad", "keep", "error"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of `rules`: the sites it speaks about, and what happens to them.

    `places` says where each block selector stands in the file; `notes`, of a switched rule, why a
    product is high.
    """

    number: int  # from 1, in file order
    place: Place
    match: Match
    keep: bool
    products: Mapping[Role, Mapping[str, OperandPolicy]]
    places: Mapping[str, Place] = field(default_factory=dict)
    name: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    key: str = ""  # where its selectors stand: rules[0].match, keep[0]

    @property
    def quantizes(self) -> bool:
        """Whether the rule stores an operand in fewer bits."""
        return any(o.quantizes for product in self.products.values() for o in product.values())

    @property
    def text(self) -> str:
        """The rule in one line."""
        does = (
            "keep high"
            if self.keep or not self.products
            else f"quantize {', '.join(self.products)}"
        )
        return f"{self.title}: {does}"

    @property
    def title(self) -> str:
        """The rule's number and what it matches."""
        return f"rule {self.number} ({self.match})"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Rules in file order; the first that matches a site decides.

    `page` and `claims` describe it: to people, and to whoever checks the report against them.
    `ragged` says what to do with a product whose summed axis is no multiple of the block.
    `min_flops` is the least share of product FLOPs, in percent, that has to be quantized.
    `schedule` switches rules as a run goes, `monitors` watch it; see `qgraph.policy.timed`.
    """

    name: str
    source: str = ""
    page: str = ""
    claims: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    path: str = ""
    ragged: Ragged = "pad"
    min_flops: Fraction | None = None
    rules: tuple[Rule, ...]
    optimizer: OptimizerPolicy | None = None
    parameters: ParameterPolicy | None = None
    stash: tuple[StashRule, ...] = ()
    schedule: tuple[Switch, ...] = ()
    monitors: tuple[Monitor, ...] = ()

    @property
    def operands(self) -> Iterator[OperandPolicy]:
        """Every operand the rules and the schedule name."""
        entries: tuple[Rule | Switch, ...] = (*self.rules, *self.schedule)
        return (o for entry in entries for p in entry.products.values() for o in p.values())

    @property
    def quantizes(self) -> bool:
        """Whether any rule stores an operand in fewer bits."""
        return any(operand.quantizes for operand in self.operands)

    @property
    def stochastic(self) -> bool:
        """Whether any operand takes random bits each step."""
        return any(operand.random for operand in self.operands)

    @property
    def history_length(self) -> int:
        """How many past steps delayed ranges look at; 0 without any."""
        ranges = (operand.format.scale.range for operand in self.operands if operand.format)
        return max((int(r.value) for r in ranges if r.kind == "delayed"), default=0)

    def _groups(self) -> dict[str, list[str]]:
        return {g.name: list(g.modules) for r in self.rules for g in r.match.groups or ()}

    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of all that changes numbers: names, places, coverage do not."""
        facts: dict[str, object] = {
            "ragged": self.ragged,
            "rules": [_rule_facts(rule) for rule in self.rules],
        }
        if self.optimizer is not None:
            facts["optimizer"] = self.optimizer.facts
        if self.parameters is not None:
            facts["parameters"] = self.parameters.facts
        if self.stash:
            facts["stash"] = [rule.facts for rule in self.stash]
        if self.schedule:
            facts["schedule"] = [switch.entry for switch in self.schedule]
            facts["monitors"] = [monitor.entry for monitor in self.monitors]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return the policy in the file's own schema, with formats named by their text form."""
        formats = {str(o.format): format_entry(o.format) for o in self.operands if o.format}
        transforms: dict[str, object] = {}
        for transform in (o.transform for o in self.operands if o.transform):
            entry = transform_facts(transform)
            known = transforms.setdefault(transform.name, entry)
            assert known == entry, f"two transforms are called '{transform.name}'"
        return {
            "qgraph": 1,
            "name": self.name,
            "source": self.source,
            "ragged": self.ragged,
            **(
                {}
                if self.min_flops is None
                else {"coverage": {"min_flops": percent(self.min_flops)}}
            ),
            "formats": formats,
            "transforms": transforms,
            **({"groups": groups} if (groups := self._groups()) else {}),
            "rules": [_rule_entry(rule) for rule in self.rules],
            **self._memory_entries(),
            **({"schedule": [switch.entry for switch in self.schedule]} if self.schedule else {}),
            **({"monitors": [monitor.entry for monitor in self.monitors]} if self.monitors else {}),
        }

    def _memory_entries(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.optimizer is not None:
            found["optimizer"] = self.optimizer.entry
        if self.parameters is not None:
            found["parameters"] = self.parameters.entry
        if self.stash:
            found["stash"] = [rule.entry for rule in self.stash]
        return found


def _rule_facts(rule: Rule) -> dict[str, object]:
    match = match_entry(rule.match)
    modules, groups = rule.match.modules, rule.match.groups
    if groups is not None:  # what a group holds changes numbers, its name does not
        found = sorted({glob for group in groups for glob in group.modules})
        match["group"] = found
        if modules is None and not any(glob.startswith("!") for glob in found):
            match["module"] = match.pop("group")
    if modules is not None:
        match["module"] = sorted(set(modules))
    products = {
        role: {kind: operand_facts(o) for kind, o in operands.items() if o.changes}
        for role, operands in rule.products.items()
    }
    also = {"also": [*map(match_entry, rule.match.also)]} if rule.match.also else {}
    return {
        "match": match,
        **also,
        "products": {role: facts for role, facts in products.items() if facts},
    }


def _rule_entry(rule: Rule) -> dict[str, object]:
    entry: dict[str, object] = {"match": match_entry(rule.match)}
    if rule.name:
        entry["name"] = rule.name
    if rule.keep:
        entry["keep"] = "high"
    for role, operands in rule.products.items():
        entry[role] = {kind: operand_entry(operand) for kind, operand in operands.items()}
    return entry
