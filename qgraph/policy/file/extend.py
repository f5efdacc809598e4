"""Policies that start from another one: `extends`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qgraph.errors import Place, PolicyError
from qgraph.policy import keys
from qgraph.policy.file.document import Document, Path
from qgraph.policy.file.words import one_line

_Places = dict[Path, Place]
MAX_CHAIN = 8


def extended(document: Document, read: Callable[[str], Document]) -> Document:
    """Return `document` with what it does not say taken from the policy it `extends`.

    `read` returns the document of a name. Every key keeps its place in the file it comes from.

    Raises: PolicyError if there is no such policy, or if policies extend one another in a circle.
    """
    chain = [document]
    while isinstance(name := chain[-1].at(("extends",)), str) and name:
        if len(chain) > MAX_CHAIN:
            problem = f"more than {MAX_CHAIN} policies extend one another: is it a circle?"
            raise document.fault(("extends",), problem, "remove one extends")
        try:
            chain.append(read(name))
        except PolicyError as error:
            if error.key != "policy":  # a fault inside the base has its own place
                raise
            problem = f"'{one_line(name)}': {error.problem}"
            raise chain[-1].fault(("extends",), problem, error.fix) from None
    found = chain.pop()
    while chain:
        found = _merged(found, chain.pop())
    return found


def _merged(base: Document, own: Document) -> Document:
    data = dict(own.data) if isinstance(own.data, dict) else {}
    places, values = dict(own.keys), dict(own.values)
    ways = {key.name: key.extends for key in keys.KEYS}
    for key in base.words(()):
        way = ways.get(key, "whole")  # an unknown key is told of where it stands
        if way == "never":
            continue
        if key not in data:
            data[key] = base.at((key,))
            _take((key,), base, places, values)
        elif way == "names" and isinstance(data[key], dict):
            own_entries = set(data[key])
            data[key] = {**{w: base.at((key, w)) for w in base.words((key,))}, **data[key]}
            for word in base.words((key,)):
                if word not in own_entries:
                    _take((key, word), base, places, values)
    return replace(own, data=data, keys=places, values=values)


def _take(path: Path, base: Document, places: _Places, values: _Places) -> None:
    for mine, theirs in ((places, base.keys), (values, base.values)):
        mine |= {p: place for p, place in theirs.items() if p[: len(path)] == path}
