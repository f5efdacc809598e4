"""The values of `schedule` and `monitors` in a policy file, and how each is read."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from qgraph.policy.timed import Moment
from qgraph.policy.values import fault

MAX_STEPS = 10**9


def _moment(value: object) -> Moment:
    fix = "write a number of steps such as 1000, or a percent of the run such as 82%"
    if isinstance(value, int):
        if not 0 <= value < MAX_STEPS:
            raise fault(f"'{value}' is no number of steps", fix)
        return Moment(amount=Fraction(value), percent=False)
    found = (
        re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", value) if isinstance(value, str) else None
    )
    if not found:
        raise fault(f"'{value}' is no time of a run", fix)
    if Fraction(found[1]) >= 100:
        raise fault(f"'{value}' is past the end of the run", fix)
    return Moment(amount=Fraction(found[1]), percent=True)


def _steps(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value < MAX_STEPS:
        raise fault(f"'{value}' is no number of steps", "write a number of steps, at least 1")
    return value


def _limit(value: object) -> float:
    """Read a number: 7, 0.5 or 50%."""
    text = str(value) if isinstance(value, int | str) else ""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?(?:e-?[0-9]{1,2})?)( ?%)?", text)
    if not found:
        raise fault(f"'{value}' is no limit", "write a number such as 7 or 0.5, or a percent")
    return float(found[1]) / (100 if found[2] else 1)


def high_product(value: object) -> object:
    """Read `high` as a product without operands."""
    if isinstance(value, str):
        if value != "high":
            raise fault(f"unknown '{value}'", "write high, or operands as in a rule: {input: fp4}")
        return {}
    return value


def high_everywhere(value: object) -> object:
    """Read `high` as all three products without operands."""
    if isinstance(value, str):
        high_product(value)
        return {role: {} for role in ("fprop", "dgrad", "wgrad")}
    return value


def _rule_names(value: object) -> list[int | str]:
    given = value if isinstance(value, list) else [value]
    names = [name for name in given if isinstance(name, int | str)]
    if not names or len(names) < len(given):
        raise fault("these are no rules", "write a rule's number or name: 3, or [2, mlp]")
    return names


MomentText = Annotated[
    Moment, PlainValidator(_moment), WithJsonSchema({"type": ["integer", "string"]})
]
Steps = Annotated[int, PlainValidator(_steps), WithJsonSchema({"type": "integer", "minimum": 1})]
Limit = Annotated[float, PlainValidator(_limit), WithJsonSchema({"type": ["number", "string"]})]
RuleNames = Annotated[
    list[int | str],
    PlainValidator(_rule_names),
    WithJsonSchema({"type": ["integer", "string", "array"]}),
]
