"""The values a policy file may hold: how each is read, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from qgraph.errors import FormatError
from qgraph.formats import (
    ELEMENTS,
    ROUNDINGS,
    Block,
    Gradient,
    Range,
    Rounding,
    find_element,
    make_block,
    make_element,
    make_list,
    make_range,
    make_scale,
    parse_gradient,
    parse_rounding,
)
from qgraph.policy.selector import BlockCount, Op, Role

HADAMARDS = (2, 4, 8, 16, 32, 64, 128, 256)
_T = TypeVar("_T")
FAULT = "qgraph"  # the type of the errors raised here; their context holds problem and fix


def fault(problem: str, fix: str) -> PydanticCustomError:
    """Return the error pydantic carries to `qgraph.policy.faults`."""
    return PydanticCustomError(FAULT, "{problem}", {"problem": problem, "fix": fix})


def _version(value: object) -> int:
    if value != 1 or not isinstance(value, int):
        raise fault(f"version '{value}' is unknown", "write qgraph: 1")
    return value


def read_word(reader: Callable[[str], _T], value: object) -> _T:
    """Read one word with a reader that raises FormatError."""
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "a mapping"
        raise fault(f"{kind} is not a word", "write one word")
    try:
        return reader(str(value))
    except FormatError as error:
        raise fault(error.problem, error.fix) from None


def _element(value: object) -> str:
    try:
        if isinstance(value, list):
            return make_list([str(number) for number in value]).name
        if isinstance(value, dict):
            return make_element({str(key): str(word) for key, word in value.items()}).name
        return find_element(str(value)).name
    except FormatError as error:
        raise fault(error.problem, error.fix) from None


def _scale(value: object) -> str:
    return read_word(lambda text: make_scale(text).name, value)


def _block(value: object) -> Block:
    match value:
        case str():
            text = value
        case [int() as across, int() as along]:
            text = f"{across}x{along}"
        case _:
            text = ""
    if text not in ("tensor", "row", "column") and not isinstance(value, list):
        fix = "write tensor, row, column, or a tile such as [1, 16]"
        raise fault(f"unknown block '{value}'", fix)
    try:
        return make_block(text)
    except FormatError:
        fix = "write [ACROSS, ALONG], 1 to 1024 by 1 to 1024 elements, as in [1, 16]"
        raise fault(f"block '{value}' is not a tile", fix) from None


def _hadamard(value: object) -> int:
    if value == "none":
        return 0
    if not isinstance(value, int) or value not in HADAMARDS:
        raise fault(f"no rotation has '{value}' elements", "write a power of two, 2 to 256")
    return value


def _module(value: object) -> str:
    if not isinstance(value, str):
        raise fault(f"'{value}' is not a module path", "write module: lm_head")
    if not value:
        raise fault("the module path is empty", "write module: lm_head")
    if re.search(r"[\s,]", value):
        what = "a comma" if "," in value else "white space"
        raise fault(f"'{value}' has {what}", "write a list: [lm_head, score]")
    return value


def _range(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    found = None
    if isinstance(value, str):
        found = re.fullmatch(r"(-?[0-9]{1,6})-(-?[0-9]{1,6})", value)
    if not found:
        raise fault(f"'{value}' is not a block", "write an index such as 0 or -1, or a range: 0-3")
    first, last = int(found[1]), int(found[2])
    if (first < 0) == (last < 0) and first > last:
        raise fault(f"the range '{value}' holds no block", "write the lower block first")
    return first, last


def _count(value: object) -> BlockCount:
    fix = "write a number of blocks such as 2, or a percent such as 15%"
    if isinstance(value, int):
        if value < 0:
            raise fault(f"'{value}' is below 0", fix)
        return BlockCount(amount=Fraction(value), percent=False)
    found = None
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", value)
    if not found:
        raise fault(f"'{value}' is not a number of blocks", fix)
    if Fraction(found[1]) > 100:
        raise fault(f"'{value}' is more than 100%", fix)
    return BlockCount(amount=Fraction(found[1]), percent=True)


def _percent(value: object) -> Fraction:
    if isinstance(value, str) and (
        found := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", value)
    ):
        share = Fraction(found[1])
        if share <= 100:
            return share
        raise fault(f"'{value}' is more than 100%", "write a percent such as 90%")
    raise fault(f"'{value}' is not a percent", "write a percent such as 90%")


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise fault(f"'{value}' is not a number of elements", "write min_size: 4096")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


Version = Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1})]


def _word(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


_ELEMENT = (
    r"u?e[1-8]m(\d|10)(\+(b-?[\d.]+|ieee|fn|fnuz|finite|flush|overflow))*"
    r"|int\d{1,2}(\+full|\+asymmetric)?|fixed\d+\.\d+|log\d|power\d\+a[\d.]+|list\(.*\)"
)
_FIELDS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_NAMES = "|".join(ELEMENTS)
ElementName = Annotated[
    str,
    PlainValidator(_element),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^({_NAMES}|{_ELEMENT})$"},
                _FIELDS,
                {"type": "array", "items": {"type": "number"}, "minItems": 2},
            ]
        }
    ),
]
ScaleName = Annotated[
    str, PlainValidator(_scale), _word(r"fp32|none|bf16|fp16|u?e[1-8]m(\d|10)(\+[a-z0-9]+)*")
]
RangeText = Annotated[
    Range,
    PlainValidator(lambda value: read_word(make_range, value)),
    _word(r"absmax|mse|std|rms|4over6(_mse)?(_448)?|(p|fixed|delayed)[\d.]+"),
]
RoundingText = Annotated[
    Rounding,
    PlainValidator(lambda value: read_word(parse_rounding, value)),
    _word(f"({'|'.join(ROUNDINGS)})(:\\d+)?"),
]
GradientText = Annotated[
    Gradient,
    PlainValidator(lambda value: read_word(parse_gradient, value)),
    _word(r"(ste|clipped|spline|dge)(:[\d.]+)*(\+absmax)?"),
]
BlockShape = Annotated[
    Block,
    PlainValidator(
        _block, json_schema_input_type=Literal["tensor", "row", "column"] | tuple[int, int]
    ),
]
Hadamard = Annotated[int, PlainValidator(_hadamard), WithJsonSchema({"enum": [*HADAMARDS, "none"]})]
Percent = Annotated[Fraction, PlainValidator(_percent), _word(r"\d{1,3}(\.\d{1,3})? ?%")]
Size = Annotated[int, PlainValidator(_size), WithJsonSchema({"type": "integer", "minimum": 0})]
Count = Annotated[BlockCount, PlainValidator(_count, json_schema_input_type=int | str)]

_Module = Annotated[str, PlainValidator(_module, json_schema_input_type=str)]
_Range = Annotated[tuple[int, int], PlainValidator(_range, json_schema_input_type=int | str)]

Ops = Annotated[
    list[Op],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=Op | list[Op]),
]
Modules = Annotated[
    list[_Module],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
Roles = Annotated[
    list[Role],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=Role | list[Role]),
]
Ranges = Annotated[
    list[_Range],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str]),
]
