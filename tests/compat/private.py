"""Finding private names of torch's in source code, wherever they stand in it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from qgraph.compat.names import Name

OWNERS = ("torch", "functorch", "triton")
_DOTTED = re.compile(r"\b(?:torch|functorch|triton)(?:\.\w+)+(?:[\[(]\w+[\])])?")
_OP = re.compile(r"\baten\.\w+")
_PRIVATE = re.compile(r"_(?!_)\w+")
_OF_OBJECTS = re.compile(
    r"\.[A-Z]\w*\.\w+$|\]$"
)  # a class's attribute, or what code writes on objects
_READERS = ("getattr", "hasattr", "setattr", "delattr", "object", "attrgetter")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A private name in a file. `kind`: import, chain, attribute, string, word, parameter or meta."""

    kind: str
    name: str
    line: int


def is_private(path: str) -> bool:
    """Whether a dotted path leads to something that torch (or Triton) keeps to itself.

    Not an op: `torch.ops.aten._softmax` is what nodes of graphs are, under names that torch documents
    (Core ATen IR) and whose signatures it keeps. `test_op_names` asks torch for each of them.
    """
    parts = path.split(".")
    if parts[0] not in OWNERS or path.startswith("torch.ops."):
        return False
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return hidden or parts[0] == "functorch" or path.startswith("torch.fx.experimental")


def public_classes() -> list[type]:
    """Return torch's public classes whose objects this project holds."""
    return [
        nn.Module, nn.Parameter, torch.Tensor, torch.SymInt, torch.Generator, Node, Graph, GraphModule,
        Interpreter, DTensor, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler,
        torch.autograd.Function, torch.utils.data.DataLoader, type(torch.ops.aten.mm.default),
    ]  # fmt: skip


def attributes_of(kinds: Iterable[type]) -> set[str]:
    """Return the names of attributes of these classes and of their objects."""
    found: set[str] = set()
    for kind in kinds:
        found |= set(dir(kind))
        for base in kind.__mro__:
            found |= set(inspect.get_annotations(base))
    module, graph = nn.Linear(2, 2), Graph()
    graph.output(graph.placeholder("x"))
    objects: list[Any] = [
        module, graph, *graph.nodes, GraphModule(nn.Module(), graph), torch.ops.aten.mm.default,
        torch.optim.SGD(module.parameters(), lr=1.0),
    ]  # fmt: skip
    for value in objects:
        found |= set(getattr(value, "__dict__", ()))
    return found


def hidden_attributes() -> set[str]:
    """Return the attributes that torch's public classes keep to themselves."""
    return {name for name in attributes_of(public_classes()) if _PRIVATE.fullmatch(name)}


def public_attributes() -> set[str]:
    """Return the attributes of torch's public classes, and of Python's own, that anyone may use."""
    own: list[type] = [str, dict, list, tuple, set, ModuleType, ExitStack, type(lru_cache(len))]
    return attributes_of([*public_classes(), *own]) - hidden_attributes()


@dataclass(frozen=True, kw_only=True)
class Words:
    """What counts as private beyond what its path tells."""

    attributes: frozenset[str] = frozenset()  # of objects: `x.name`, getattr(x, "name")
    strings: frozenset[str] = frozenset()  # anywhere in the code
    parameters: frozenset[str] = frozenset()  # of torch's public functions


def private_words(names: Iterable[Name], ours: Iterable[str]) -> Words:
    """Return what counts as private: what torch's classes hide, and what the list of names has.

    `ours` are attributes of our own classes: a word of theirs tells nothing.
    """
    every = list(names)
    hidden = {name.last for name in every if _PRIVATE.fullmatch(name.last)}
    of_objects = {name.last for name in every if _OF_OBJECTS.search(name.path)}
    keys = {name.last for name in every if name.area == "meta" and "_" in name.last}
    parameters = {
        n.last for n in every if n.path[-1] == ")" and not is_private(n.path.split("(")[0])
    }
    known = public_attributes() | set(ours)
    hidden |= hidden_attributes()
    return Words(
        attributes=frozenset(hidden | (of_objects - known)),
        strings=frozenset(hidden | keys),
        parameters=frozenset(parameters),
    )


class _Finder(ast.NodeVisitor):
    def __init__(self, tree: ast.Module, words: Words) -> None:
        self.words, self.found = words, set[Found]()
        self.names = names_of(tree)
        self._own: list[set[str]] = []  # what the classes around define on `self`
        self._prose = {id(text) for text in _docstrings(tree)}

    def add(self, kind: str, name: str, node: Any) -> None:
        self.found.add(Found(kind=kind, name=name, line=node.lineno))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if is_private(alias.name):
                self.add("import", alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            path = f"{node.module}.{alias.name}"
            if not node.level and is_private(path):
                self.add("import", path, node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [self.path_of(base) or "" for base in node.bases]
        torchs = any(base.split(".")[0] in OWNERS for base in bases)
        self._own.append(set() if torchs else _defined(node))
        self.generic_visit(node)
        self._own.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self.path_of(node)
        if path is None:
            self._attribute(node.value, node.attr, node)
            self.generic_visit(node)
        elif is_private(path):
            self.add("chain", path, node)

    def _attribute(self, owner: ast.expr, name: str, node: ast.AST) -> None:
        ours = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        if ours and self._own and name in self._own[-1]:
            return
        if name == "meta":
            self.add("meta", ast.unparse(node), node)
        elif name in self.words.attributes:
            self.add("attribute", name, node)

    def visit_Call(self, node: ast.Call) -> None:
        last = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        last = node.func.id if isinstance(node.func, ast.Name) else last
        if last in _READERS and node.args:
            names = node.args[-1:] if last == "attrgetter" else node.args[1:2]
            for argument in names:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    self._read_by_name(node.args[0], argument.value, node)
        path = self.path_of(node.func)
        for keyword in node.keywords:
            if path is not None and path.endswith(".config.patch") and keyword.arg:
                self.add("chain", f"{path.removesuffix('patch')}{keyword.arg}", node)
            if keyword.arg in self.words.parameters:
                self.add("parameter", str(keyword.arg), node)
        self.generic_visit(node)

    def _read_by_name(self, owner: ast.expr, name: str, node: ast.AST) -> None:
        path = self.path_of(owner)
        if path is not None and is_private(f"{path}.{name}"):
            self.add("chain", f"{path}.{name}", node)
        else:
            self._attribute(owner, name, node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str) or id(node) in self._prose:
            return
        for path in _DOTTED.findall(node.value):
            if is_private(re.split(r"[\[(]", path)[0]) or path.endswith((")", "]")):
                self.add("string", path, node)
        words = set(re.findall(r"\w+", _OP.sub("", node.value)))
        for word in sorted(words & (self.words.strings | self.words.parameters)):
            self.add("word", word, node)

    def path_of(self, node: ast.AST) -> str | None:
        return path_of(node, self.names)


def find_private(source: str, words: Words) -> list[Found]:
    """Return the private names in a file, in the order of its lines."""
    tree = ast.parse(source)
    finder = _Finder(tree, words)
    finder.visit(tree)
    return sorted(finder.found, key=lambda found: (found.line, found.kind, found.name))


def names_of(tree: ast.Module) -> dict[str, str]:
    """Return what the names that a file imports, or gives to parts of torch, stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                found[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):  # aten = torch.ops.aten
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, path = node.targets[0], path_of(node.value, found)
            if isinstance(target, ast.Name) and path and path.split(".")[0] in OWNERS:
                found[target.id] = path
    return found


def path_of(node: ast.AST, names: dict[str, str]) -> str | None:
    """Return the dotted path of an expression that begins with an imported name, None for others."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def attributes_in(source: str) -> set[str]:
    """Return the attributes that the classes of a file give their objects."""
    kinds = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {name for kind in kinds for name in _defined(kind)}


def _defined(kind: ast.ClassDef) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (part for whole in targets for part in ast.walk(whole)):
                if isinstance(target, ast.Name):
                    found.add(target.id)
                elif (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                ):
                    found.add(target.attr)
    return found
