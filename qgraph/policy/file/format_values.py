"""The parts of a number format in a policy file: how each is read, and what to write instead."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PlainValidator, WithJsonSchema

from qgraph.errors import FormatError
from qgraph.formats import (
    ELEMENTS,
    Block,
    Range,
    find_element,
    make_block,
    make_element,
    make_list,
    make_range,
    make_scale,
)
from qgraph.policy.file.entry import value_fault
from qgraph.policy.file.values import read_word, word_schema


def _element(value: object) -> str:
    try:
        if isinstance(value, list):
            return make_list([str(number) for number in value]).name
        if isinstance(value, dict):
            return make_element({str(key): str(word) for key, word in value.items()}).name
        return find_element(str(value)).name
    except FormatError as error:
        raise value_fault(error.problem, error.fix) from None


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
        raise value_fault(f"unknown block '{value}'", fix)
    try:
        return make_block(text)
    except FormatError:
        fix = "write [ACROSS, ALONG], 1 to 1024 by 1 to 1024 elements, as in [1, 16]"
        raise value_fault(f"block '{value}' is not a tile", fix) from None


_PATTERN = (
    r"u?e[1-8]m(\d|10)(\+(b-?[\d.]+|ieee|fn|fnuz|finite|flush|overflow))*"
    r"|int\d{1,2}(\+full|\+asymmetric)?|fixed\d+\.\d+|log\d|power\d\+a[\d.]+|list\(.*\)"
)
_FIELDS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_LIST = {"type": "array", "items": {"type": "number"}, "minItems": 2}
_NAMES = "|".join(ELEMENTS)
ElementName = Annotated[
    str,
    PlainValidator(_element),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^({_NAMES}|{_PATTERN})$"}, _FIELDS, _LIST]}
    ),
]
ScaleName = Annotated[
    str, PlainValidator(_scale), word_schema(r"fp32|none|bf16|fp16|u?e[1-8]m(\d|10)(\+[a-z0-9]+)*")
]
RangeText = Annotated[
    Range,
    PlainValidator(lambda value: read_word(make_range, value)),
    word_schema(
        r"absmax(\+floor[\d.e-]+)?|mse|std|rms|4over6(_mse)?(_448)?|(p|fixed|delayed)[\d.]+"
    ),
]
BlockShape = Annotated[
    Block,
    PlainValidator(
        _block, json_schema_input_type=Literal["tensor", "row", "column"] | tuple[int, int]
    ),
]
