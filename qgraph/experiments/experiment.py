"""An experiment of a paper as data: its claim, its runs, and what has to hold for the claim to show."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from qgraph.errors import QGraphError
from qgraph.policy import Policy, load_policy, load_policy_text

FOLDER = importlib.resources.files("qgraph.experiments") / "papers"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the paper says of the runs, as a comparison of a metric's means.

    `less`: the first side lies below the second. `equal`: both within `within` of one another.
    A side is one arm or several, whose mean counts. `value`: the one arm's metric is that number,
    within `within`.
    """

    says: str
    metric: str
    kind: str  # less, equal, value
    sides: tuple[tuple[str, ...], ...]
    within: float = 0.0
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment. `arms` are the things compared, by name; each runs once for each seed.

    `measure` names the kind of run (see `qgraph.experiments.measures`), `settings` are its numbers.
    `baseline` is the arm that the table subtracts; `twin`, if any, is the baseline once more from
    initial weights changed by 1%: how far the two differ is the noise of a run.
    """

    name: str
    title: str
    source: str
    claim: str
    measure: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, Any]]
    baseline: str
    twin: str
    metrics: tuple[str, ...]
    expect: tuple[Expectation, ...]
    limits: str
    template: str = ""
    policies: Mapping[str, Any] = field(default_factory=dict)

    def policy(self, arm: str) -> Policy:
        """Return the policy of an arm: a recipe's name, a mapping, or the template filled in."""
        chosen = self.arms[arm].get("policy")
        if isinstance(chosen, str) and chosen in self.policies:
            chosen = self.policies[chosen]
        if chosen is None and self.template:
            text = Template(self.template).substitute(self.arms[arm])
            return load_policy_text(f"qgraph: 1\nname: {arm}\n{text}", file=f"{self.name}, {arm}")
        if isinstance(chosen, Mapping):
            text = yaml.safe_dump({"qgraph": 1, "name": arm, **chosen}, sort_keys=False)
            return load_policy_text(text, file=f"{self.name}, {arm}")
        return load_policy(str(chosen or "high"))


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments qgraph ships, sorted."""
    return tuple(sorted(Path(f.name).stem for f in FOLDER.iterdir() if f.name.endswith(".yaml")))


def load_experiment(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises: QGraphError naming the nearest ones if there is none.
    """
    if name not in experiment_names():
        near = difflib.get_close_matches(name, experiment_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise QGraphError(
            f"unknown experiment '{name}'", f"{hint}qgraph reproduce --list lists them"
        )
    return make_experiment(name, (FOLDER / f"{name}.yaml").read_text("utf-8"))


def make_experiment(name: str, text: str) -> Experiment:
    """Return the experiment that `text` describes, in YAML."""
    data = yaml.safe_load(text)
    arms = {arm: dict(entry or {}) for arm, entry in data["arms"].items()}
    found = Experiment(
        name=name,
        title=data["title"],
        source=data["source"],
        claim=" ".join(data["claim"].split()),
        measure=data["measure"],
        settings=data.get("settings", {}),
        seeds=tuple(data["seeds"]),
        arms=arms,
        baseline=data["baseline"],
        twin=data.get("twin", ""),
        metrics=tuple(data["metrics"]),
        expect=tuple(_expectation(entry) for entry in data["expect"]),
        limits=" ".join(data.get("limits", "").split()),
        template=data.get("template", ""),
        policies=data.get("policies", {}),
    )
    named = {arm for e in found.expect for side in e.sides for arm in side}
    unknown = (named | {found.baseline, found.twin or found.baseline}) - set(arms)
    assert not unknown, f"{name} speaks of arms it does not have: {unknown}"
    return found


def _expectation(entry: Mapping[str, Any]) -> Expectation:
    kind = next(key for key in ("less", "equal", "value") if key in entry)
    sides = entry[kind] if kind != "value" else [entry["of"]]
    return Expectation(
        says=" ".join(entry["says"].split()),
        metric=entry["metric"],
        kind=kind,
        sides=tuple(tuple(side) if isinstance(side, list) else (side,) for side in sides),
        within=float(entry.get("within", 0.0)),
        value=float(entry["value"]) if kind == "value" else 0.0,
    )
