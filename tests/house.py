"""The source tree as the rules of the house see it: files, what they import, what they define."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Lowest first: a package imports from those before it only.
ORDER = (
    "lazy", "errors", "compat", "formats", "numerics", "policy", "ops", "passes", "models", "doors",
    "predict", "calibration", "search", "training", "experiments", "export", "tools",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file: `name` is its module's, without `qgraph.`; of a package the package's."""

    name: str
    tree: ast.Module = field(repr=False)

    @property
    def layer(self) -> str:
        """The package, or the file, at the top of qgraph; "" for qgraph itself."""
        return self.name.split(".")[0]

    def imports(self, *, running: bool = False) -> Iterator[str]:
        """Yield what it imports of qgraph, without `qgraph.`, each name apart: `passes.Step`.

        With `running` only what runs when the module is imported.
        """
        for node in _statements(self.tree) if running else ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    if full.startswith("qgraph."):
                        yield full.removeprefix("qgraph.")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("qgraph."):
                        yield alias.name.removeprefix("qgraph.")

    def definitions(self) -> Iterator[str]:
        """Yield the public classes and functions of the module."""
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                yield node.name


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield what runs at import: the body, and the branches of its ifs, but for type checkers'."""
    todo = list(tree.body)
    while todo:
        node = todo.pop(0)
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += node.body + node.orelse
        if isinstance(node, ast.Try):
            todo += node.body


Sources = Mapping[str, Source]


@functools.cache
def sources() -> Sources:
    """Return every file of the project's source, by name."""
    homes = {"": ROOT / "qgraph", "passes.": ROOT / "passes", "tools.": ROOT / "tools"}
    found: dict[str, Source] = {}
    for prefix, home in homes.items():
        for file in sorted(home.rglob("*.py")):
            relative = file.relative_to(home)
            if prefix == "" and relative.parts[0] in ("passes", "tools"):
                continue  # links: read where they lead
            name = (prefix + ".".join(relative.with_suffix("").parts)).removesuffix("__init__")
            name = name.rstrip(".")
            found[name] = Source(name=name, tree=ast.parse(file.read_text()))
    return found


def planted(name: str, text: str) -> Sources:
    """Return the source with one file more, or another in its place: a breach to be found."""
    return {**sources(), name: Source(name=name, tree=ast.parse(text))}


def module_of(found: Sources, imported: str) -> str:
    """Return the module that an imported name is, or is of."""
    return imported if imported in found else imported.rpartition(".")[0]
