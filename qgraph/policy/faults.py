"""pydantic's errors in plain words, at the place in the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qgraph.errors import PolicyError
from qgraph.policy.document import Document, Path, key_text, shown
from qgraph.policy.schema import (
    DgradEntry,
    FormatEntry,
    FpropEntry,
    MatchEntry,
    OperandEntry,
    PolicyFile,
    RuleEntry,
    TransformEntry,
    WgradEntry,
)
from qgraph.policy.values import FAULT

MODELS: tuple[type[BaseModel], ...] = (
    PolicyFile, FormatEntry, TransformEntry, RuleEntry, MatchEntry, FpropEntry, DgradEntry,
    WgradEntry, OperandEntry,
)  # fmt: skip
EXAMPLES: dict[str, Any] = {
    key: info.examples[0]
    for model in MODELS
    for key, info in model.model_fields.items()
    if info.examples
}
WANTED = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a name",
}
ENTRIES: dict[str, type[BaseModel]] = {
    "formats": FormatEntry, "transforms": TransformEntry, "rules": RuleEntry, "match": MatchEntry,
    "fprop": FpropEntry, "dgrad": DgradEntry, "wgrad": WgradEntry,
}  # fmt: skip


def nearest(word: str, words: Iterable[str]) -> str:
    """Return a fix that names the word nearest to `word`, or all of them."""
    known = list(words)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(map(shown, known))}"


def validate(document: Document) -> PolicyFile:
    """Return the file as typed data.

    Raises: PolicyError for the first fault in file order.
    """
    try:
        return PolicyFile.model_validate(document.data)
    except ValidationError as error:
        faults = [_fault(document, detail) for detail in error.errors()]
    raise min(faults, key=_position)


def _position(error: PolicyError) -> tuple[int, int]:
    assert not isinstance(error.place, str), f"a fault without a place: {error}"
    return error.place.line, error.place.column


def _fault(document: Document, detail: ErrorDetails) -> PolicyError:
    path, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == FAULT:
        return document.fault(path, shown(context["problem"]), context["fix"])
    if kind == "extra_forbidden":
        *_, word = path
        fix = nearest(str(word), _model_at(path[:-1]).model_fields)
        found = document.fault(path, f"unknown key '{shown(str(word))}'", fix, at_key=True)
        return PolicyError(found.place, key_text(path[:-1]), found.problem, fix)
    if kind == "missing":
        return document.fault(path[:-1], f"the key '{path[-1]}' is missing", _example(path))
    value = detail["input"]
    if value is None:
        return document.fault(path, "no value is given", _example(path))
    if kind in ("too_short", "string_too_short"):
        return document.fault(path, "it is empty", _example(path))
    if kind == "literal_error" and isinstance(value, str):
        words = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return document.fault(path, f"unknown '{shown(value)}'", nearest(value, words))
    wanted = WANTED.get(kind, "a word that stands here")
    return document.fault(path, f"{_given(value)} is not {wanted}", _example(path))


def _given(value: object) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return "a truth value"
        case _:
            return f"'{shown(str(value))}'"


def _model_at(path: Path) -> type[BaseModel]:
    match path:
        case ():
            return PolicyFile
        case ("formats" | "transforms" | "rules" as group, _):
            return ENTRIES[group]
        case ("rules", _, str() as part):
            return ENTRIES[part]
        case _:
            return OperandEntry


def _example(path: Path) -> str:
    match path:
        case ("formats", str() as name):
            key, example = name, {"element": "e2m1", "block": [1, 32], "scale": "ue8m0"}
        case ("transforms", str() as name):
            key, example = name, EXAMPLES["transforms"]["rht"]
        case (*_, "rules", int()):
            return f"write {_flow(EXAMPLES['rules'][0])}"
        case (*_, str() as key, int()):
            example = EXAMPLES[key]
        case (*_, "format") if "." not in key_text(path[-1:]):
            key, example = "format", "high"
        case _:
            key = str(path[-1])
            example = EXAMPLES[key]
    return f"write {shown(key)}: {_flow(example)}"


def _flow(value: object) -> str:
    return json.dumps(value).replace('"', "")
