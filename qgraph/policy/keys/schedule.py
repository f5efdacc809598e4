"""The key `schedule`: switches of rules as a run goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from qgraph.errors import Place
from qgraph.policy.file.document import Document, Path
from qgraph.policy.file.entry import FileEntry, optional, required, value_fault
from qgraph.policy.file.values import Moment, MomentText, Percent, Steps, percent
from qgraph.policy.file.words import did_you_mean, one_line
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.match import Match, MatchEntry, block_places, read_match
from qgraph.policy.keys.monitor import MONITORS_KEY, PLATEAU
from qgraph.policy.keys.rules import (
    RULES_KEY,
    DgradEntry,
    FpropEntry,
    Product,
    Rule,
    WgradEntry,
    operands_of,
    read_product,
)
from qgraph.policy.products import ROLES, Role

_TIMES = ("at", "until", "every", "for")


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One entry of `schedule`: when rules change, which, and to what.

    Steps count those that are done: `at` 100 means from the step after the first 100 on. Sites are
    those of `match` that the rules numbered in `rules` decide; without any, all rules that quantize.
    A product in `products` without operands is high. `on` is `plateau` or the name of a monitor.
    """

    number: int  # from 1, in file order
    place: Place
    places: Mapping[str, Place] = field(default_factory=dict)
    match: Match
    rules: tuple[int, ...] | None = None
    products: Mapping[Role, Product]
    at: Moment | None = None
    until: Moment | None = None
    every: Moment | None = None
    lasts: Moment | None = None
    on: str = ""
    patience: int = 0
    improvement: Fraction = Fraction(0)

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"schedule[{self.number - 1}]"

    @property
    def moments(self) -> dict[str, Moment]:
        """Its times, by their words in a policy file."""
        words = {"at": self.at, "every": self.every, "for": self.lasts, "until": self.until}
        return {word: moment for word, moment in words.items() if moment is not None}

    def speaks_about(self, rule: Rule) -> bool:
        """Whether it changes sites that `rule` decides."""
        return not rule.keep if self.rules is None else rule.number in self.rules

    def start(self, total: int) -> int:
        """Return how many steps are done when it is first on, if time decides."""
        moment = self.at or self.every
        return 0 if moment is None else moment.of(total)

    def is_on(self, done: int, total: int, tripped: int | None = None) -> bool:
        """Whether it is on in the step after `done` of `total`; `tripped` at that step, if `on` says so."""
        if self.on:
            lasts = total if self.lasts is None else self.lasts.of(total)
            return tripped is not None and tripped <= done < tripped + lasts
        since = done - self.start(total)
        if since < 0 or (self.until is not None and done >= self.until.of(total)):
            return False
        if self.every is not None:
            since %= max(1, self.every.of(total))
        return self.lasts is None or since < self.lasts.of(total)

    @property
    def text(self) -> str:
        """The switch in one line."""
        when = [f"on {self.on}"] if self.on else []
        if self.patience:
            when[0] += f" (no {percent(self.improvement)} better in {self.patience} steps)"
        for word, moment in self.moments.items():
            when.append(f"{word} {moment}{'' if moment.percent else ' steps'}")
        where = [] if str(self.match) == "everything" else [str(self.match)]
        if self.rules is not None:
            where.append(f"rule {' or '.join(map(str, self.rules))}")
        does = []
        for role, product in self.products.items():
            operands = [f"{kind} {o.format or 'high'}" for kind, o in product.items()]
            does.append(f"{role} {', '.join(operands) or 'high'}")
        place = f" ({', '.join(where)})" if where else ""
        return f"{', '.join(when)}{place}: set {'; '.join(does)}"

    @property
    def entry(self) -> dict[str, object]:
        """The switch as a policy file writes it."""
        moments = self.moments
        entry: dict[str, object] = {w: moments[w].entry for w in _TIMES if w in moments}
        entry |= {"on": self.on} if self.on else {}
        if self.patience:
            entry |= {"patience": self.patience, "improvement": percent(self.improvement)}
        entry |= {"rule": list(self.rules)} if self.rules is not None else {}
        entry["match"] = self.match.entry
        entry["set"] = {
            role: {kind: o.entry for kind, o in product.items()} or "high"
            for role, product in self.products.items()
        }
        return entry


def _high_product(value: object) -> object:
    """Read `high` as a product without operands."""
    if isinstance(value, str):
        if value != "high":
            fix = "write high, or operands as in a rule: {input: fp4}"
            raise value_fault(f"unknown '{value}'", fix)
        return {}
    return value


def _high_everywhere(value: object) -> object:
    """Read `high` as all three products without operands."""
    if isinstance(value, str):
        _high_product(value)
        return {role: {} for role in ROLES}
    return value


def _rule_names(value: object) -> list[int | str]:
    given = value if isinstance(value, list) else [value]
    names = [name for name in given if isinstance(name, int | str)]
    if not names or len(names) < len(given):
        raise value_fault("these are no rules", "write a rule's number or name: 3, or [2, mlp]")
    return names


RuleNames = Annotated[
    list[int | str],
    PlainValidator(_rule_names),
    WithJsonSchema({"type": ["integer", "string", "array"]}),
]


def _high(entry: Any) -> BeforeValidator:
    return BeforeValidator(_high_product, json_schema_input_type=Literal["high"] | entry)


class SetEntry(FileEntry):
    """Products a switch sets: each high, or its operands as in a rule. Others stay as they were."""

    fprop: Annotated[FpropEntry, _high(FpropEntry)] | None = optional("Y.", "high")
    dgrad: Annotated[DgradEntry, _high(DgradEntry)] | None = optional("dX.", "high")
    wgrad: Annotated[WgradEntry, _high(WgradEntry)] | None = optional("dW.", "high")


class ScheduleEntry(FileEntry):
    """A switch of rules: from a step on, for some steps, again and again, or when something happens."""

    at: MomentText | None = optional("After how many steps, or which share of the run.", "82%")
    until: MomentText | None = optional("When the switch ends.", "90%")
    every: MomentText | None = optional("Again after so many steps, each time as long as for.", 500)
    lasts: MomentText | None = Field(
        default=None, alias="for", description="How long the switch lasts.", examples=[100]
    )
    on: Annotated[str, Field(min_length=1)] | None = optional(
        "plateau (of the loss), or the name of a monitor: when it trips.", "plateau"
    )
    patience: Steps | None = optional("plateau: in how many steps the loss must fall.", 200)
    improvement: Percent | None = optional("plateau: by how much, at least.", "0.1%")
    rule: RuleNames | None = optional(
        "Rules by number or name; left out, all that quantize. A rule that keeps its sites high "
        "is switched only where it is named here.",
        3,
    )
    match: MatchEntry = optional("Which sites of these rules.", {"op": "linear"}, MatchEntry())
    set: Annotated[
        SetEntry,
        BeforeValidator(_high_everywhere, json_schema_input_type=Literal["high"] | SetEntry),
    ] = required("high, or what products become.", {"fprop": "high"})


def _resolve(entries: list[ScheduleEntry], reading: Reading) -> tuple[Switch, ...]:
    reading.of(MONITORS_KEY)  # their faults come first
    schedule: list[Switch] = []
    for i, entry in enumerate(entries):
        switch = _switch(i, entry, reading)
        _check_effect(switch, schedule, reading)
        schedule.append(switch)
    _check_order(schedule, reading.document)
    return tuple(schedule)


def _switch(index: int, entry: ScheduleEntry, reading: Reading) -> Switch:
    path: Path = ("schedule", index)
    document = reading.document
    _check_times(entry, path, reading)
    match = read_match(entry.match, (*path, "match"), reading)
    return Switch(
        number=index + 1,
        place=document.values[path],
        places=_places(path, document),
        match=match,
        products=_products(entry.set, match, (*path, "set"), reading),
        rules=_rules(entry, path, reading),
        at=entry.at,
        until=entry.until,
        every=entry.every,
        lasts=entry.lasts,
        on=entry.on or "",
        patience=(entry.patience or 200) if entry.on == PLATEAU else 0,
        improvement=Fraction(1, 10) if entry.improvement is None else entry.improvement,
    )


def _products(entry: SetEntry, match: Match, path: Path, reading: Reading) -> dict[Role, Product]:
    document = reading.document
    roles = ROLES if document.at(path) == "high" else document.words(path)
    if not roles:
        raise document.fault(path, "it sets no product", "write set: {fprop: high}")
    products: dict[Role, Product] = {}
    for role in ROLES:
        if role in roles:
            high = "high" in (document.at(path), document.at((*path, role)))
            products[role] = {} if high else read_product(role, entry, match, path, reading)
    return products


def _check_times(entry: ScheduleEntry, path: Path, reading: Reading) -> None:
    document = reading.document
    words = [word for word in document.words(path) if word in _TIMES]
    if entry.on is None and entry.at is None and entry.every is None:
        fix = "write at: 82%, every: 500 or on: plateau"
        raise document.fault(path, "it does not say when", fix)
    if entry.on is not None:
        names = (PLATEAU, *(monitor.name for monitor in reading.of(MONITORS_KEY)))
        if entry.on not in names:
            problem = f"there is no monitor '{one_line(entry.on)}'"
            raise document.fault((*path, "on"), problem, did_you_mean(entry.on, names))
        wrong = next((word for word in words if word != "for"), None)
        if wrong:
            problem = f"on and {wrong} exclude each other"
            raise document.fault((*path, wrong), problem, "remove one of them", at_key=True)
    if entry.every is not None and entry.lasts is None:
        raise document.fault((*path, "every"), "it does not say for how long", "write for: 100")
    if entry.lasts is not None and entry.until is not None and entry.every is None:
        problem = "for and until exclude each other"
        raise document.fault((*path, "until"), problem, "remove one of them")
    for word in ("patience", "improvement"):
        if word in document.words(path) and entry.on != PLATEAU:
            fix = "write on: plateau, or remove it"
            raise document.fault((*path, word), f"{word} belongs to on: plateau", fix, at_key=True)


def _rules(entry: ScheduleEntry, path: Path, reading: Reading) -> tuple[int, ...] | None:
    if entry.rule is None:
        return None
    rules = reading.of(RULES_KEY)
    known: dict[int | str, int] = {rule.number: rule.number for rule in rules}
    known |= {rule.name: rule.number for rule in rules if rule.name}
    for name in entry.rule:
        if name not in known:
            fix = did_you_mean(str(name), map(str, known))
            problem = f"unknown rule '{one_line(str(name))}'"
            raise reading.document.fault((*path, "rule"), problem, fix)
    return tuple(sorted({known[name] for name in entry.rule}))


def _check_effect(switch: Switch, earlier: Sequence[Switch], reading: Reading) -> None:
    path: Path = ("schedule", switch.number - 1, "set")
    rules = [rule for rule in reading.of(RULES_KEY) if switch.speaks_about(rule)]
    if not rules:
        fix = "name the rule to switch: write rule: 1"
        raise reading.document.fault(path, "every rule keeps its sites high", fix)
    same = all(
        rule.products.get(role, {}) == product
        for rule in rules
        for role, product in switch.products.items()
    )
    # After a switch, another may set what the rules say again.
    if same and not any(role in before.products for before in earlier for role in switch.products):
        problem = f"it changes nothing: the rules say the same of {' and '.join(switch.products)}"
        fix = "set another product, or remove the switch"
        raise reading.document.fault(path, problem, fix)


def _check_order(schedule: Sequence[Switch], document: Document) -> None:
    """Hold switches of one unit against each other; the rest needs the length of the run."""
    last: dict[bool, Switch] = {}
    for switch in schedule:
        if switch.at is None or switch.on:
            continue
        before = last.get(switch.at.percent)
        if before is not None and before.at is not None and switch.at.amount < before.at.amount:
            problem = f"{switch.at} comes after {before.at}"
            fix = "write switches in the order of their steps"
            raise document.fault(("schedule", switch.number - 1, "at"), problem, fix)
        last[switch.at.percent] = switch


def _places(path: Path, document: Document) -> dict[str, Place]:
    places = {word: document.values[*path, word] for word in document.words(path)}
    return places | block_places((*path, "match"), document)


SCHEDULE_KEY: Key[tuple[Switch, ...]] = Key(
    module=__name__,
    name="schedule",
    entry=Annotated[list[ScheduleEntry], Field(min_length=1)],
    description="Switches of rules, in order of time.",
    example=[{"at": "82%", "set": {"fprop": "high"}}],
    default=[],
    resolve=_resolve,
    written=lambda switches, policy: [switch.entry for switch in switches] or None,
    words=lambda switches, policy: [f"{switch.key}: {switch.text}" for switch in switches],
    changes=lambda schedule: any(operand.changes for operand in operands_of(schedule)),
)
