"""What the files of `qgraph/compat` use of torch's private names."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.compat.private import (
    Words,
    attributes_in,
    find_private,
    is_private,
    names_of,
    path_of,
    public_attributes,
)

HOME = Path(__file__).parents[2] / "qgraph" / "compat"
_WORD = re.compile(r"_?[a-z]+(_[a-z]+)*")


def areas() -> dict[str, Path]:
    """Return the files that use names, by the name of their area."""
    own = ("__init__", "names", "table", "table_offline")
    return {file.stem: file for file in sorted(HOME.glob("*.py")) if file.stem not in own}


def paths_used(source: str) -> set[str]:
    """Return the private paths that a file imports, follows, subclasses or writes out.

    Of a module that is imported for something in it, that alone counts.
    """
    found = {
        f.name
        for f in find_private(source, Words())
        if f.kind in ("import", "chain", "string") and not f.name.endswith("]")
    }
    tree = ast.parse(source)
    found |= {*_overridden(tree), *_keywords(tree)}
    return {
        path
        for path in found
        if not any(other.startswith((f"{path}.", f"{path}(")) for other in found)
    }


def _keywords(tree: ast.Module) -> Iterator[str]:
    """Yield the parameters by which private functions are called."""
    names = names_of(tree)
    for node in ast.walk(tree):
        path = path_of(node.func, names) if isinstance(node, ast.Call) else None
        if path is None or not is_private(path) or path.endswith(".config.patch"):
            continue
        assert isinstance(node, ast.Call)
        yield from (f"{path}({keyword.arg})" for keyword in node.keywords if keyword.arg)


def _overridden(tree: ast.Module) -> Iterator[str]:
    """Yield what classes of ours put in the place of a private class's own."""
    names = names_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for base in node.bases:
            path = path_of(base, names)
            if path is None or not is_private(path):
                continue
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    yield f"{path}.{part.name}"
                elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
                    yield f"{path}.{part.targets[0].id}"


def words_used(source: str) -> set[str]:
    """Return the words by which a file reads what only objects have: attributes that no public class has.

    Also those it reads or writes by their names, and constants that look like private names.
    """
    tree = ast.parse(source)
    names, public = names_of(tree), _public()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and path_of(node, names) is None:
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            if node.func.id in ("getattr", "hasattr", "setattr") and isinstance(name, ast.Constant):
                found.add(str(name.value))
    found |= set(_constants(tree))
    return {word for word in found if word not in public and not word.startswith("__")}


def _constants(tree: ast.Module) -> Iterator[str]:
    """Yield constants that look like private names, and the keys that `meta` writes."""
    keys = "node.meta" in ast.unparse(tree)
    top = {id(n) for part in tree.body if isinstance(part, ast.Assign) for n in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and _WORD.fullmatch(str(node.value)):
            word = str(node.value)
            if word.startswith("_") or (keys and ("_" in word or id(node) in top)):
                yield word


@functools.cache
def _public() -> frozenset[str]:
    ours = {name for file in HOME.glob("*.py") for name in attributes_in(file.read_text())}
    return frozenset(public_attributes() | ours)


def is_used(word: str, source: str) -> bool:
    """Whether a file's code has this word: as a name, an attribute, a keyword or in a string."""
    for node in ast.walk(ast.parse(source)):
        texts = (
            getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "arg", ""),
            getattr(node, "name", ""), node.value if isinstance(node, ast.Constant) else "",
        )  # fmt: skip
        if any(word in re.findall(r"\w+", text) for text in texts if isinstance(text, str)):
            return True
    return False
