"""pydantic's errors in plain words, at the place in the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qgraph.errors import PolicyError
from qgraph.policy.document import Document, Path, key_text, shown
from qgraph.policy.memory_schema import (
    OptimizerEntry,
    ParametersEntry,
    StashEntry,
    StashMatchEntry,
    StoredEntry,
)
from qgraph.policy.monitor_schema import MonitorEntry
from qgraph.policy.operand_schema import FormatEntry, OperandEntry, TransformEntry
from qgraph.policy.schema import (
    ClaimEntry,
    CoverageEntry,
    DgradEntry,
    FpropEntry,
    MatchEntry,
    PolicyFile,
    RuleEntry,
    ScheduleEntry,
    SetEntry,
    WgradEntry,
)
from qgraph.policy.selector import OperandKind
from qgraph.policy.values import FAULT

# Of keys with one name, such as match, the last one's example counts.
MODELS: tuple[type[BaseModel], ...] = (
    OptimizerEntry, StoredEntry, ParametersEntry, StashEntry, StashMatchEntry,
    SetEntry, ScheduleEntry, MonitorEntry,
    PolicyFile, CoverageEntry, FormatEntry, TransformEntry, RuleEntry, MatchEntry, FpropEntry, DgradEntry,
    WgradEntry, OperandEntry,
)  # fmt: skip
EXAMPLES: dict[str, Any] = {
    info.alias or key: info.examples[0]
    for model in MODELS
    for key, info in model.model_fields.items()
    if info.examples and not (model is RuleEntry and key == "name")
}
NAMED = {
    "formats": {"element": "e2m1", "block": [1, 32], "scale": "ue8m0"},
    "transforms": {"hadamard": 16, "signs": "te"},
}
OPERANDS = get_args(OperandKind)
WANTED = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a name",
}
ENTRIES: dict[str, type[BaseModel]] = {
    "claims": ClaimEntry, "keep": MatchEntry,
    "formats": FormatEntry, "transforms": TransformEntry, "rules": RuleEntry, "match": MatchEntry,
    "fprop": FpropEntry, "dgrad": DgradEntry, "wgrad": WgradEntry, "schedule": ScheduleEntry,
    "monitors": MonitorEntry, "set": SetEntry,
}  # fmt: skip


def nearest(word: str, words: Iterable[str]) -> str:
    """Return a fix that names the word nearest to `word`, or all of them."""
    known = list(words)
    near = difflib.get_close_matches(word, known, n=1)
    if len(known) == 1 and not near:
        return f"write {shown(known[0])}"
    if near:
        return f"did you mean '{shown(near[0])}'?"
    return f"use one of: {', '.join(map(shown, known))}"


def validate(document: Document) -> PolicyFile:
    """Return the file as typed data.

    Raises: PolicyError for the first fault in file order.
    """
    faults = [
        document.fault(path, "no value is given", _example(path))
        for path in document.values
        if document.at(path) is None
    ]
    try:
        file = PolicyFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors()
        misspelt = {d["loc"][:-1] for d in details if d["type"] == "extra_forbidden"}
        faults += [
            _fault(document, detail)
            for detail in details
            if not (detail["type"] == "missing" and detail["loc"][:-1] in misspelt)
            and (detail["input"] is not None or detail["type"] == "extra_forbidden")
        ]
    else:
        if not faults:
            return file
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
        fields = _model_at(path[:-1]).model_fields
        fix = nearest(str(word), [info.alias or key for key, info in fields.items()])
        found = document.fault(path, f"unknown key '{shown(str(word))}'", fix, at_key=True)
        return PolicyError(found.place, key_text(path[:-1]), found.problem, fix)
    if kind == "missing":
        return document.fault(path[:-1], f"the key '{path[-1]}' is missing", _example(path))
    value = detail["input"]
    if kind in ("too_short", "string_too_short"):
        return document.fault(path, "it is empty", _example(path))
    if kind == "literal_error":
        words = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        plain = not isinstance(value, list | dict)
        problem = f"unknown {_given(value)}" if plain else f"{_given(value)} is not a word"
        return document.fault(path, problem, nearest(str(value) if plain else "", words))
    assert kind in WANTED, f"an error of pydantic's without words: {kind}"
    if isinstance(value, int) and path in (("name",), ("source",)):
        return document.fault(path, f"'{value}' is a number", f"put it in quotes: '{value}'")
    wanted = "a format" if path[-1] in OPERANDS else WANTED[kind]
    return document.fault(path, f"{_given(value)} is not {wanted}", _example(path))


def _given(value: object) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return f"'{shown(str(value))}'"


def _model_at(path: Path) -> type[BaseModel]:
    match path:
        case ():
            return PolicyFile
        case ("coverage",):
            return CoverageEntry
        case ("optimizer",):
            return OptimizerEntry
        case ("parameters",):
            return ParametersEntry
        case ("optimizer" | "parameters", _):
            return StoredEntry
        case ("stash", _):
            return StashEntry
        case ("stash", _, "match"):
            return StashMatchEntry
        case (
            "formats"
            | "transforms"
            | "rules"
            | "schedule"
            | "monitors"
            | "keep"
            | "claims" as group,
            _,
        ):
            return ENTRIES[group]
        case ("rules" | "schedule", _, str() as part) | ("schedule", _, "set", str() as part):
            return ENTRIES[part]
        case _:
            return OperandEntry


def _example(path: Path) -> str:
    word = next((step for step in reversed(path) if isinstance(step, str)), "")
    if path[0] in ("optimizer", "stash") and word not in EXAMPLES:
        return f"write {shown(word)}: int8/row/fp32"
    if path[:1] in (("rules",), ("schedule",), ("monitors",)) and len(path) == 2:
        return f"write {_flow(EXAMPLES[str(path[0])][0])}"
    if path[:1] == ("keep",) and len(path) < 3:
        return "write keep: [{group: head}]"
    if len(path) == 2 and path[0] in NAMED:
        return f"write {shown(word)}: {_flow(NAMED[str(path[0])])}"
    return f"write {shown(word)}: {_flow(EXAMPLES.get(word, '...'))}"


def _flow(value: object) -> str:
    return json.dumps(value).replace('"', "")
