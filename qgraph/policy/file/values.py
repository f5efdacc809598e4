"""Values that several keys take: how each is read, and what to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from qgraph.errors import FormatError
from qgraph.formats import ROUNDINGS, Rounding, parse_rounding
from qgraph.policy.file.entry import value_fault

_MAX_STEPS = 10**9
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A number, or a share in percent of a total that is known later."""

    amount: Fraction
    percent: bool

    def __str__(self) -> str:
        return percent(self.amount) if self.percent else str(self.amount)

    @property
    def entry(self) -> object:
        """The amount as a policy file writes it."""
        return percent(self.amount) if self.percent else int(self.amount)

    def of(self, total: int) -> int:
        """Return how many of `total` this is; a share rounds up."""
        return math.ceil(self.amount * total / 100) if self.percent else int(self.amount)


class Moment(Amount):
    """A number of optimizer steps, or a share of the run in percent."""


def percent(share: Fraction) -> str:
    """Return a share, 0 to 100, as policies write it: 90%."""
    return f"{float(share):g}%"


def read_share(value: object) -> Fraction | None:
    """Return the number before a percent sign; None for anything else."""
    pattern = r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%"
    found = re.fullmatch(pattern, value) if isinstance(value, str) else None
    return Fraction(found[1]) if found else None


def read_word(reader: Callable[[str], _T], value: object) -> _T:
    """Read one word with a reader that raises FormatError."""
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "a mapping"
        raise value_fault(f"{kind} is not a word", "write one word")
    try:
        return reader(str(value))
    except FormatError as error:
        raise value_fault(error.problem, error.fix) from None


def word_schema(pattern: str) -> WithJsonSchema:
    """Return the JSON Schema of one word of this pattern."""
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


def one_or_more(schema: Any) -> BeforeValidator:
    """Return the reader of a list that a single value may stand for; `schema` is one value's type."""
    return BeforeValidator(_as_list, json_schema_input_type=schema | list[schema])


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


def _text(value: object) -> object:
    if isinstance(value, int):
        raise value_fault(f"'{value}' is a number", f"put it in quotes: '{value}'")
    return value


def _module(value: object) -> str:
    if not isinstance(value, str):
        raise value_fault(f"'{value}' is not a module path", "write {key}: lm_head")
    if not value:
        raise value_fault("the module path is empty", "write {key}: lm_head")
    if pattern := re.match(r"re:|regex:|\.\*|\^|.*[\\$(|+]", value):
        glob = re.sub(r"^(re|regex):|^\^|\$$|\\", "", value).replace(".*", "*")
        what = "another tool's notation" if pattern[0].endswith(":") else "a regular expression"
        raise value_fault(
            f"'{value}' is {what}", f"write a glob, where * stands for anything, dots too: '{glob}'"
        )
    if re.search(r"[\s,]", value):
        what = "a comma" if "," in value else "white space"
        raise value_fault(f"'{value}' has {what}", "write a list: [lm_head, score]")
    return value


def _percent(value: object) -> Fraction:
    share, fix = read_share(value), "write a percent such as 90%"
    if share is None:
        raise value_fault(f"'{value}' is not a percent", fix)
    if share > 100:
        raise value_fault(f"'{value}' is more than 100%", fix)
    return share


def _steps(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value < _MAX_STEPS:
        raise value_fault(f"'{value}' is no number of steps", "write a number of steps, at least 1")
    return value


def _moment(value: object) -> Moment:
    fix = "write a number of steps such as 1000, or a percent of the run such as 82%"
    if isinstance(value, int):
        if not 0 <= value < _MAX_STEPS:
            raise value_fault(f"'{value}' is no number of steps", fix)
        return Moment(amount=Fraction(value), percent=False)
    share = read_share(value)
    if share is None:
        raise value_fault(f"'{value}' is no time of a run", fix)
    if share >= 100:
        raise value_fault(f"'{value}' is past the end of the run", fix)
    return Moment(amount=share, percent=True)


Text = Annotated[str, BeforeValidator(_text)]
Percent = Annotated[Fraction, PlainValidator(_percent), word_schema(r"\d{1,3}(\.\d{1,3})? ?%")]
Steps = Annotated[int, PlainValidator(_steps), WithJsonSchema({"type": "integer", "minimum": 1})]
MomentText = Annotated[
    Moment, PlainValidator(_moment), WithJsonSchema({"type": ["integer", "string"]})
]
RoundingText = Annotated[
    Rounding,
    PlainValidator(lambda value: read_word(parse_rounding, value)),
    word_schema(f"({'|'.join(ROUNDINGS)})(:\\d+)?"),
]
_Module = Annotated[str, PlainValidator(_module, json_schema_input_type=str)]
Modules = Annotated[list[_Module], Field(min_length=1), one_or_more(str)]
