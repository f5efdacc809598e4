"""Schedules and monitors of a policy file: every name looked up, each switch held against the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from qgraph.errors import Place
from qgraph.policy.document import Document, Path, shown
from qgraph.policy.faults import nearest
from qgraph.policy.model import Policy, Rule
from qgraph.policy.monitor_schema import MonitorEntry
from qgraph.policy.operands import OperandPolicy
from qgraph.policy.resolve_match import block_places, make_match
from qgraph.policy.schema import PolicyFile, ScheduleEntry, SetEntry
from qgraph.policy.selector import ROLES, Group, Match, Role
from qgraph.policy.stages import speaks_about
from qgraph.policy.timed import PLATEAU, WATCHES, Monitor, Switch

# Reads one product of a `set` as it would be read in a rule.
Product = Callable[[Role, SetEntry, Match, Path], Mapping[str, OperandPolicy]]
TIMES = ("at", "until", "every", "for")


def with_schedule(
    policy: Policy,
    file: PolicyFile,
    document: Document,
    product: Product,
    groups: Mapping[str, Group],
) -> Policy:
    """Return `policy` with the file's schedule and monitors.

    Raises: PolicyError where they do not fit the rules, each other, or time.
    """
    monitors = tuple(_monitor(i, entry, document) for i, entry in enumerate(file.monitors))
    for i, monitor in enumerate(monitors):
        path: Path = ("monitors", i)
        if monitor.name == PLATEAU or monitor.name in {m.name for m in monitors[:i]}:
            fix = "give it a name of its own"
            raise document.fault(path, f"a second '{shown(monitor.name)}'", fix)
    names = (PLATEAU, *(monitor.name for monitor in monitors))
    schedule = tuple(
        _switch(i, entry, policy, names, document, product, groups)
        for i, entry in enumerate(file.schedule)
    )
    _check_order(schedule, document)
    found = replace(policy, schedule=schedule, monitors=monitors)
    for monitor in monitors:
        entries: tuple[Rule | Switch, ...] = (*policy.rules, *schedule)
        wgrad = any(entry.products.get("wgrad") for entry in entries)
        if monitor.watch == "wgrad_error" and not wgrad:
            path = ("monitors", monitor.number - 1, "watch")
            fix = "quantize wgrad, or remove the monitor"
            raise document.fault(path, "no rule quantizes wgrad: there is no error to watch", fix)
    return found


def _monitor(index: int, entry: MonitorEntry, document: Document) -> Monitor:
    every, above = WATCHES[entry.watch]
    if entry.watch != "loss_spike" and "window" in document.words(("monitors", index)):
        problem = f"{entry.watch} has no window"
        raise document.fault(("monitors", index, "window"), problem, "remove it", at_key=True)
    return Monitor(
        number=index + 1,
        place=document.values["monitors", index],
        name=entry.name or entry.watch,
        watch=entry.watch,
        above=above if entry.above is None else entry.above,
        every=entry.every or every,
        window=entry.window,
        action=entry.action,
    )


def _switch(
    index: int,
    entry: ScheduleEntry,
    policy: Policy,
    names: tuple[str, ...],
    document: Document,
    product: Product,
    groups: Mapping[str, Group],
) -> Switch:
    path: Path = ("schedule", index)
    _check_times(entry, path, names, document)
    match = make_match(entry.match, (*path, "match"), groups, document)
    where = (*path, "set")
    roles = ROLES if document.at(where) == "high" else document.words(where)
    if not roles:
        raise document.fault(where, "it sets no product", "write set: {fprop: high}")
    products: dict[Role, Mapping[str, OperandPolicy]] = {}
    for role in ROLES:
        if role in roles:
            high = "high" in (document.at(where), document.at((*where, role)))
            products[role] = {} if high else product(role, entry.set, match, where)
    switch = Switch(
        number=index + 1,
        place=document.values[path],
        places=_places(path, document),
        match=match,
        rules=_rules(entry, policy, path, document),
        products=products,
        at=entry.at,
        until=entry.until,
        every=entry.every,
        lasts=entry.lasts,
        on=entry.on or "",
        patience=(entry.patience or 200) if entry.on == PLATEAU else 0,
        improvement=Fraction(1, 10) if entry.improvement is None else entry.improvement,
    )
    _check_effect(switch, policy, where, document)
    return switch


def _check_times(
    entry: ScheduleEntry, path: Path, names: tuple[str, ...], document: Document
) -> None:
    words = [word for word in document.words(path) if word in TIMES]
    if entry.on is None and entry.at is None and entry.every is None:
        raise document.fault(
            path, "it does not say when", "write at: 82%, every: 500 or on: plateau"
        )
    if entry.on is not None:
        if entry.on not in names:
            fix = nearest(entry.on, names)
            problem = f"there is no monitor '{shown(entry.on)}'"
            raise document.fault((*path, "on"), problem, fix)
        wrong = next((word for word in words if word != "for"), None)
        if wrong:
            problem = f"on and {wrong} exclude each other"
            raise document.fault((*path, wrong), problem, "remove one of them", at_key=True)
    if entry.every is not None and entry.lasts is None:
        raise document.fault((*path, "every"), "it does not say for how long", "write for: 100")
    if entry.lasts is not None and entry.until is not None and entry.every is None:
        raise document.fault(
            (*path, "until"), "for and until exclude each other", "remove one of them"
        )
    for word in ("patience", "improvement"):
        if word in document.words(path) and entry.on != PLATEAU:
            fix = "write on: plateau, or remove it"
            raise document.fault((*path, word), f"{word} belongs to on: plateau", fix, at_key=True)


def _rules(
    entry: ScheduleEntry, policy: Policy, path: Path, document: Document
) -> tuple[int, ...] | None:
    if entry.rule is None:
        return None
    known: dict[int | str, int] = {rule.number: rule.number for rule in policy.rules}
    known |= {rule.name: rule.number for rule in policy.rules if rule.name}
    for name in entry.rule:
        if name not in known:
            fix = nearest(str(name), map(str, known))
            raise document.fault((*path, "rule"), f"unknown rule '{shown(str(name))}'", fix)
    return tuple(sorted({known[name] for name in entry.rule}))


def _check_effect(switch: Switch, policy: Policy, path: Path, document: Document) -> None:
    rules = [rule for rule in policy.rules if speaks_about(switch, rule)]
    if not rules:
        fix = "name the rule to switch: write rule: 1"
        raise document.fault(path, "every rule keeps its sites high", fix)
    same = all(
        rule.products.get(role, {}) == product
        for rule in rules
        for role, product in switch.products.items()
    )
    alone = all(
        not earlier.products.get(role) for earlier in policy.schedule for role in switch.products
    )
    if same and alone:
        roles = " and ".join(switch.products)
        fix = "set another product, or remove the switch"
        raise document.fault(path, f"it changes nothing: the rules say the same of {roles}", fix)


def _check_order(schedule: tuple[Switch, ...], document: Document) -> None:
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
