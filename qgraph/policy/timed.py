"""What a policy says about time: switches of its rules, and monitors that watch a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from qgraph.errors import Place
from qgraph.policy.operands import OperandPolicy, operand_entry
from qgraph.policy.selector import Match, Role, match_entry, percent

Watch = Literal["loss_spike", "logit_sharpness", "wgrad_error"]
Action = Literal["warn", "stop"]
PLATEAU = "plateau"
# Steps between two looks, and the usual limit: standard deviations, percent, a share.
WATCHES: dict[Watch, tuple[int, float]] = {
    "loss_spike": (1, 7.0),
    "logit_sharpness": (50, 1.0),
    "wgrad_error": (50, 0.5),
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A number of optimizer steps, or a share of the run in percent."""

    amount: Fraction
    percent: bool

    def __str__(self) -> str:
        return f"{float(self.amount):g}%" if self.percent else str(self.amount)

    @property
    def entry(self) -> object:
        """The moment as a policy file writes it."""
        return percent(self.amount) if self.percent else int(self.amount)

    def of(self, total: int) -> int:
        """Return how many steps of a run of `total` this is; a share rounds up."""
        return math.ceil(self.amount * total / 100) if self.percent else int(self.amount)


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
    products: Mapping[Role, Mapping[str, OperandPolicy]]
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
            better = f"{float(self.improvement):g}%"
            when[0] += f" (no {better} better in {self.patience} steps)"
        pairs = (("at", self.at), ("every", self.every), ("for", self.lasts), ("until", self.until))
        for word, moment in pairs:
            if moment is not None:
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
        moments = {"at": self.at, "every": self.every, "for": self.lasts, "until": self.until}
        entry: dict[str, object] = {
            word: moment.entry for word, moment in moments.items() if moment is not None
        }
        entry |= {"on": self.on} if self.on else {}
        if self.patience:
            entry |= {"patience": self.patience, "improvement": percent(self.improvement)}
        entry |= {"rule": list(self.rules)} if self.rules is not None else {}
        entry["match"] = match_entry(self.match)
        entry["set"] = {
            role: {kind: operand_entry(o) for kind, o in product.items()} or "high"
            for role, product in self.products.items()
        }
        return entry


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """One entry of `monitors`: a number watched as the run goes, and what to do above a limit.

    `loss_spike`: how many standard deviations the loss lies above the mean of `window` steps before.
    `logit_sharpness`: see `qgraph.training.signals`. `wgrad_error`: the largest relative error of a
    weight's gradient. Looked at every `every` steps.
    """

    number: int
    place: Place
    name: str
    watch: Watch
    above: float
    every: int
    window: int
    action: Action

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"monitors[{self.number - 1}]"

    @property
    def text(self) -> str:
        """The monitor in one line."""
        window = f" of {self.window} steps" if self.watch == "loss_spike" else ""
        often = "every step" if self.every == 1 else f"every {self.every} steps"
        return f"{self.name}: {self.watch}{window} above {self.above:g}, {often}: {self.action}"

    @property
    def entry(self) -> dict[str, object]:
        """The monitor as a policy file writes it."""
        entry: dict[str, object] = {
            "name": self.name,
            "watch": self.watch,
            "above": f"{self.above:g}",
            "every": self.every,
            "action": self.action,
        }
        return entry | ({"window": self.window} if self.watch == "loss_spike" else {})
