"""pydantic's errors in plain words, at the place in the file."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qgraph.errors import PolicyError
from qgraph.policy.file.document import Document, Path, key_text
from qgraph.policy.file.entry import FAULT, FileEntry
from qgraph.policy.file.spot import Spot, find_spot
from qgraph.policy.file.words import did_you_mean, given_text, one_line

_WANTED = {"dict_type": "a mapping", "list_type": "a list", "string_type": "a name"}


def validate(document: Document, schema: type[FileEntry]) -> FileEntry:
    """Return the file as typed data.

    Raises: PolicyError for the first fault in file order.
    """
    faults = [
        document.fault(path, "no value is given", find_spot(schema, path).example_fix)
        for path in document.values
        if document.at(path) is None
    ]
    try:
        file = schema.model_validate(document.data)
    except ValidationError as error:
        details = error.errors()
        misspelt = {d["loc"][:-1] for d in details if d["type"] == "extra_forbidden"}
        faults += [
            _fault(document, schema, detail)
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


def _fault(document: Document, schema: type[FileEntry], detail: ErrorDetails) -> PolicyError:
    path, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    spot = find_spot(schema, path)
    if kind == FAULT:
        fix = context["fix"].replace("{key}", one_line(spot.word))
        return document.fault(path, one_line(context["problem"]), fix)
    if kind == "extra_forbidden":
        return _unknown_key(document, schema, path)
    if kind == "missing":
        problem = f"the key '{path[-1]}' is missing"
        return document.fault(path[:-1], problem, spot.example_fix)
    value = detail["input"]
    if kind in ("too_short", "string_too_short"):
        return document.fault(path, "it is empty", spot.example_fix)
    if kind == "literal_error":
        words = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        plain = not isinstance(value, list | dict)
        given = given_text(value)
        problem = f"unknown {given}" if plain else f"{given} is not a word"
        return document.fault(path, problem, did_you_mean(str(value) if plain else "", words))
    return document.fault(
        path, f"{given_text(value)} is not {_wanted(kind, spot)}", spot.example_fix
    )


def _wanted(kind: str, spot: Spot) -> str:
    if kind in ("model_type", "model_attributes_type"):
        return spot.model.called if spot.model is not None else FileEntry.called
    assert kind in _WANTED, f"an error of pydantic's without words: {kind}"
    return _WANTED[kind]


def _unknown_key(document: Document, schema: type[FileEntry], path: Path) -> PolicyError:
    word = one_line(str(path[-1]))
    fix = did_you_mean(str(path[-1]), find_spot(schema, path[:-1]).keys)
    found = document.fault(path, f"unknown key '{word}'", fix, at_key=True)
    return PolicyError(found.place, key_text(path[:-1]), found.problem, fix)
