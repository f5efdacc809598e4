"""A private name of torch's, and finding out whether the torch at hand has it.

A path is `torch._dynamo.reset`, a parameter `torch.compile(isolate_recompiles)`, or what a module's code
writes on objects of other classes, `torch.fx.proxy[seq_nr]`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Each file of this folder, and what needs it.
AREAS = {
    "aot": "convert, codegen=False, looking at plans, search",
    "aten": "native products of INT8, graphs as text",
    "codegen": "compile --offline",
    "descriptions": "every rewrite: it tells parameters, inputs and gradients apart",
    "dynamo": "qgraph.compile, convert",
    "fake": "models without weights",
    "inductor": "qgraph.compile with code generation",
    "meta": "every pass",
    "modules": "qgraph.compile, parameters stored in one dtype and used in another",
    "standin": "compile --offline",
    "stepping": "quantized optimizer states under a scheduler",
    "symbolic": "models compiled for sizes that change",
    "watching": "seeing what runs outside of compiled graphs",
}


@dataclass(frozen=True, kw_only=True)
class Name:
    """One private name: the file of this folder that uses it, and what for.

    It is there from the torch version `since` on and gone from `until` on; empty where no supported
    version lacks it. `instead` says what the file does without it.
    """

    path: str
    area: str
    used_for: str
    since: str = ""
    until: str = ""
    instead: str = ""

    @property
    def last(self) -> str:
        """The word by which code uses the name."""
        return re.split(r"[.\[(]", self.path.rstrip(")]"))[-1]

    def expected(self, version: str) -> bool:
        """Whether torch of this version is to have the name."""
        here = _numbers(version)
        late = self.since and here < _numbers(self.since)
        gone = self.until and here >= _numbers(self.until)
        return not (late or gone)

    def problem(self, version: str, breaks: str) -> str:
        """Return what is to be said where torch of this version has not what it is to have."""
        return (
            f"torch {version} has no {self.path}: qgraph/compat/{self.area}.py uses it for "
            f"{self.used_for}. Without it these break: {breaks}"
        )


def names_in(area: str, home: str, *rows: tuple[str, ...]) -> Iterator[Name]:
    """Yield names of an area; a row is what they are used for, and their paths from `home` on.

    `f(a, b)` is two names, `f(a)` and `f(b)`; so is `f[a, b]`.
    """
    for used_for, *paths in rows:
        for path in paths:
            for whole in _spelled_out(path):
                yield Name(path=f"{home}.{whole}", area=area, used_for=used_for)


def _spelled_out(path: str) -> list[str]:
    if path[-1] not in ")]":
        return [path]
    home, opening, words = re.split(r"([(\[])", path[:-1])
    return [f"{home}{opening}{word}{path[-1]}" for word in words.split(", ")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def find(path: str) -> Any:
    """Return what a path of the list leads to; of an attribute that only objects have, its class.

    Raises: AttributeError if torch has it not.
    """
    written = re.fullmatch(r"(.+)\[(\w+)\]", path)
    parameter = re.fullmatch(r"(.+)\((\w+)\)", path)
    if written:
        return _mentioned(_walk(written[1]), written[2])
    if parameter:
        found = _walk(parameter[1])
        known = inspect.signature(found).parameters
        if parameter[2] not in known and all(p.kind != p.VAR_KEYWORD for p in known.values()):
            raise AttributeError(f"{parameter[1]} takes no {parameter[2]}")
        return found
    return _walk(path)


def _walk(path: str) -> Any:
    parts = path.split(".")
    found: Any = None
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = _attribute(found, part)
        return found
    raise AttributeError(f"there is no {parts[0]}")


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute; of one that a class gives its objects only, the class."""
    if hasattr(owner, name):
        return getattr(owner, name)
    if not inspect.isclass(owner):
        raise AttributeError(f"{owner!r} has no {name}")
    if any(name in inspect.get_annotations(base) for base in owner.__mro__):
        return owner
    for base in owner.__mro__[:-1]:
        if re.search(rf"\bself\.{name}\b", inspect.getsource(base)):
            return owner
    raise AttributeError(f"{owner!r} gives its objects no {name}")


def _mentioned(module: Any, word: str) -> Any:
    if not re.search(rf"""["'.]{word}\b""", inspect.getsource(module)):
        raise AttributeError(f"{module!r} writes no {word}")
    return module
