"""The keys that describe a policy and change nothing: its version, name, source, base and page."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema

from qgraph.policy.file.entry import value_fault
from qgraph.policy.file.values import Text
from qgraph.policy.key import Key, Reading, as_written, nothing


def _version(value: object) -> int:
    if value != 1 or not isinstance(value, int):
        raise value_fault(f"version '{value}' is unknown", "write qgraph: 1")
    return value


def _name(name: str, reading: Reading) -> str:
    if not re.fullmatch(r"[^./\\][^/\\]*", name) or not name.isprintable():
        # `qgraph train` names folders after policies.
        fix = "leave out slashes and a leading dot, as in my-nvfp4"
        raise reading.document.fault(("name",), f"'{name}' is no name for a policy", fix)
    return name


VERSION_KEY: Key[int] = Key(
    name="qgraph",
    entry=Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1})],
    description="The version of this schema.",
    example=1,
    resolve=as_written,
    written=lambda version, policy: version,
    numbers=nothing,
)
NAME_KEY: Key[str] = Key(
    name="name",
    entry=Annotated[Text, Field(min_length=1)],
    description="What reports call the policy.",
    example="nvfp4",
    extends="never",
    resolve=_name,
    written=lambda name, policy: policy.name,  # it may be given another
    numbers=nothing,
)
SOURCE_KEY: Key[str] = Key(
    name="source",
    entry=Text,
    description="Where the recipe comes from.",
    example="arXiv 2509.25149",
    default="",
    resolve=as_written,
    written=lambda source, policy: source,
    numbers=nothing,
)
EXTENDS_KEY: Key[str] = Key(
    name="extends",
    entry=str,
    description="A recipe, or a policy file, to start from: keys given here replace its keys; entries "
    "of formats, transforms, groups and claims do so by name.",
    example="nvfp4",
    default="",
    extends="never",
    resolve=as_written,
    written=nothing,
)
PAGE_KEY: Key[str] = Key(
    name="page",
    entry=str,
    description="What the recipe does and does not cover; the first line is its summary.",
    example="4 bits.",
    default="",
    extends="never",
    resolve=lambda page, reading: page.strip(),
    written=nothing,
)
