"""A scheduled policy at one time of a run: the same rules, some of them switched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qgraph.errors import PolicyError
from qgraph.policy.keys.match import Match
from qgraph.policy.keys.rules import Rule
from qgraph.policy.keys.schedule import Switch
from qgraph.policy.model import Policy


def stage(policy: Policy, active: Iterable[int]) -> Policy:
    """Return the policy without a schedule whose rules are as the switches numbered `active` set them.

    Where two set the same product, the later in the file does. Rules keep their numbers. What a
    run must quantize, `coverage`, is asked of the start only: no switch is on.
    """
    switches = [switch for switch in policy.schedule if switch.number in set(active)]
    rules = [variant for rule in policy.rules for variant in _variants(rule, switches)]
    found = policy.but(rules=tuple(rules), schedule=(), monitors=())
    return found.but(coverage=None) if switches else found


def _variants(rule: Rule, switches: Sequence[Switch]) -> list[Rule]:
    """Return the rules that stand for `rule`: a switch of some of its sites comes before the rest."""
    variants = [rule]
    for switch in switches:
        if not switch.speaks_about(rule):
            continue
        if switch.match == Match():
            variants = [_switched(variant, switch) for variant in variants]
            continue
        variants = [
            new
            for variant in variants
            for new in (_switched(_narrowed(variant, switch.match), switch), variant)
        ]
    return variants


def _narrowed(rule: Rule, match: Match) -> Rule:
    return replace(rule, match=replace(rule.match, also=(*rule.match.also, match)))


def _switched(rule: Rule, switch: Switch) -> Rule:
    products = {**rule.products, **switch.products}
    notes = {role: f"{switch.key} sets {role} high" for role, p in switch.products.items() if not p}
    kept = {role: note for role, note in rule.notes.items() if role not in switch.products}
    return replace(
        rule,
        keep=False,
        products={role: product for role, product in products.items() if product},
        notes=kept | notes,
    )


def check_run(policy: Policy, total: int) -> None:
    """Check the schedule and the monitors against a run of `total` steps.

    Raises: PolicyError, with the place, for a switch past the end of the run, one that is off again
        before it is on, and switches whose order in the file is not their order in time.
    """
    last = 0
    for switch in policy.schedule:
        for word, moment in switch.moments.items():
            steps = moment.of(total)
            if word in ("at", "every") and steps >= total:
                problem = f"{moment} is past the end: the run has {total} steps"
                raise _fault(switch, word, problem, f"write {word}: below {total}, or a percent")
            if word in ("every", "for") and steps < 1:
                raise _fault(
                    switch, word, f"{moment} of {total} steps is less than one", "write a number"
                )
        start = switch.start(total)
        if switch.until is not None and switch.until.of(total) <= start:
            problem = f"it ends after {switch.until.of(total)} steps and begins after {start}"
            raise _fault(switch, "until", problem, "write a later until, or an earlier at")
        if switch.every and switch.lasts and switch.lasts.of(total) >= switch.every.of(total):
            problem = f"{switch.lasts.of(total)} of every {switch.every.of(total)} steps is always"
            raise _fault(switch, "for", problem, "write for: less than every")
        if switch.on:
            continue
        if start < last:
            problem = f"it begins after {start} steps, the switch above it after {last}"
            word = "at" if switch.at else "every"
            raise _fault(switch, word, problem, "write switches in the order of their steps")
        last = start


def _fault(switch: Switch, word: str, problem: str, fix: str) -> PolicyError:
    return PolicyError(switch.places.get(word, switch.place), f"{switch.key}.{word}", problem, fix)
