"""A resolved policy: what every key of the file stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qgraph.formats import parse_rounding
from qgraph.policy import keys
from qgraph.policy.keys.calibrate import CALIBRATE_KEY
from qgraph.policy.keys.claims import CLAIMS_KEY
from qgraph.policy.keys.coverage import COVERAGE_KEY
from qgraph.policy.keys.format import Stored
from qgraph.policy.keys.functions import FUNCTIONS_KEY
from qgraph.policy.keys.monitor import MONITORS_KEY
from qgraph.policy.keys.operand import OperandPolicy
from qgraph.policy.keys.optimizer import OPTIMIZER_KEY
from qgraph.policy.keys.page import PAGE_KEY
from qgraph.policy.keys.parameters import PARAMETERS_KEY
from qgraph.policy.keys.ragged import RAGGED_KEY
from qgraph.policy.keys.rules import RULES_KEY, operands_of
from qgraph.policy.keys.schedule import SCHEDULE_KEY
from qgraph.policy.keys.source import SOURCE_KEY
from qgraph.policy.keys.stash import STASH_KEY


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a policy file says: its keys' values, by their names.

    Rules stand in file order; the first that matches a site decides. The attributes below are keys
    that other packages read: each has the type its key gives it. A key needs none to be carried,
    written and counted in the fingerprint.
    """

    name: str
    path: str = ""
    values: Mapping[str, Any]

    source = SOURCE_KEY
    page = PAGE_KEY
    claims = CLAIMS_KEY
    ragged = RAGGED_KEY
    min_flops = COVERAGE_KEY
    rules = RULES_KEY
    optimizer = OPTIMIZER_KEY
    parameters = PARAMETERS_KEY
    stash = STASH_KEY
    functions = FUNCTIONS_KEY
    calibrate = CALIBRATE_KEY
    schedule = SCHEDULE_KEY
    monitors = MONITORS_KEY

    @property
    def operands(self) -> Iterator[OperandPolicy]:
        """Every operand the rules and the schedule name."""
        return operands_of((*self.rules, *self.schedule))

    @property
    def quantizes(self) -> bool:
        """Whether any rule stores an operand in fewer bits."""
        return any(operand.quantizes for operand in self.operands)

    @property
    def stochastic(self) -> bool:
        """Whether anything takes random bits each step: an operand, or what waits in memory."""
        return any(operand.random for operand in self.operands) or any(
            stored.draws for stored in self._waiting
        )

    @property
    def _waiting(self) -> Iterator[Stored]:
        """How tensors wait in memory: for the backward, and for the next step."""
        yield from (rule.stored for rule in self.stash)
        yield from self.optimizer.states.values() if self.optimizer else ()
        if self.parameters is not None:
            yield self.parameters.master or Stored(
                rounding=parse_rounding(self.parameters.rounding)
            )

    @property
    def history_length(self) -> int:
        """How many past steps delayed ranges look at; 0 without any."""
        ranges = (operand.format.scale.range for operand in self.operands if operand.format)
        return max((int(r.value) for r in ranges if r.kind == "delayed"), default=0)

    def but(self, **values: object) -> Policy:
        """Return the policy with other values of some keys; they are not held against each other."""
        unknown = {*values} - {*self.values}
        assert not unknown, f"no key is called {unknown}"
        return replace(self, values={**self.values, **values})

    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of all that changes numbers: names, places, coverage do not."""
        said = {k.name: (k.numbers or k.written)(k.of(self), self) for k in keys.KEYS}
        facts = {name: value for name, value in said.items() if value is not None}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return the policy in the file's own schema, with formats named by their text form."""
        said = {key.name: key.written(key.of(self), self) for key in keys.KEYS}
        return {name: value for name, value in said.items() if value is not None}

    def lines(self) -> list[str]:
        """Return what the policy says, key by key, as reports print it."""
        return [line for key in keys.KEYS for line in key.words(key.of(self), self)]
