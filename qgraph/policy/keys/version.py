"""The key `qgraph`: the version of the schema that a file is written in."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from qgraph.policy.file.entry import value_fault
from qgraph.policy.key import Key, as_written, nothing


def _version(value: object) -> int:
    if value != 1 or not isinstance(value, int):
        raise value_fault(f"version '{value}' is unknown", "write qgraph: 1")
    return value


VERSION_KEY: Key[int] = Key(
    module=__name__,
    name="qgraph",
    entry=Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1})],
    description="The version of this schema.",
    example=1,
    resolve=as_written,
    written=lambda version, policy: version,
    numbers=nothing,
)
