"""Mutants: the source with one place broken, drawn from its syntax tree by a seed.

Not drawn, because no test should hold it: docstrings, annotations and decorators; texts, those of
errors and f-strings too; what an object prints itself as; where a warning points; that lists are as
long as each other; dated data of machines; the examples. Nor arguments whose order means nothing, and
Triton's functions, which `written` breaks.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.house import ROOT

FOLDERS = ("passes", "qgraph/numerics", "qgraph/ops", "qgraph/policy", "qgraph/training")
KINDS = ("compare", "constant", "drop", "swap")
EACH = 4  # of each kind in each folder
DATA = ("qgraph/ops/devices.py", "qgraph/ops/native/limits.py")
_EXAMPLES = "qgraph/training/example_"
_SHOWN = ("__repr__", "__str__", "__dir__")
_TYPES = ("isinstance", "issubclass", "hasattr", "getattr", "cast", "field", "TypeVar")
_EITHER_WAY = (
    "max", "min", "maximum", "minimum", "gcd", "lcm", "add", "mul", "logical_and", "logical_or", "equal",
)  # fmt: skip
_POINTS = ("stacklevel", "strict", "indent", "repr", "encoding", "maxsize")
_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One file with one place broken: `broken` is its whole text, `where` the function, "" for none."""

    file: str
    where: str
    line: int
    kind: str
    old: str
    new: str
    nth: int = 0  # of several alike in one function
    tests: str = ""  # the only tests to try, if the map of what tests reach does not say
    broken: str = field(repr=False)

    @property
    def id(self) -> str:
        """Eight hex digits that stay as long as the place reads the same."""
        said = f"{self.file} {self.where} {self.kind} {self.old} {self.new} {self.nth}"
        return hashlib.sha256(said.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" + (f" {self.where}" if self.where else "")
        return f"{self.id} {self.kind:8} {place}: {_short(self.old)} -> {_short(self.new)}"


def drawn(seed: int, each: int = EACH) -> list[Mutant]:
    """Return `each` mutants of each kind in each folder.

    A place's rank is a hash of seed and place, so that a change of one file redraws little else.
    """
    found = []
    for folder in FOLDERS:
        every = list(mutants_of(folder))
        for kind in KINDS:
            some = [mutant for mutant in every if mutant.kind == kind]
            found += sorted(some, key=lambda mutant: _rank(seed, mutant))[:each]
    return found


def _rank(seed: int, mutant: Mutant) -> bytes:
    return hashlib.sha256(f"{seed} {mutant.id}".encode()).digest()


def mutants_of(folder: str, root: Path = ROOT) -> Iterator[Mutant]:
    """Yield every mutant of the files of a folder."""
    for path in sorted((root / folder).rglob("*.py")):
        file = str(path.relative_to(root))
        if not file.startswith(_EXAMPLES):
            yield from mutants_in(file, path.read_text())


def mutants_in(file: str, text: str) -> list[Mutant]:
    """Return every mutant of one file."""
    finder = _Finder(file, text)
    finder.visit(ast.parse(text))
    return finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, text: str) -> None:
        self.file, self.data = file, text.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.names: list[str] = []
        self.found: list[Mutant] = []
        self.alike: Counter[tuple[str, ...]] = Counter()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        jitted = any(ast.unparse(one).startswith("jit") for one in node.decorator_list)
        if node.name in _SHOWN or jitted:
            return
        self.names.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._visit_each(node.body)
        self.names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.append(node.name)
        self._visit_each(node.body)
        self.names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._drop_if_stored(node, [node.target] if node.value else [])
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._drop_if_stored(node, node.targets)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add("drop", node, "pass")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add("drop", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._add("drop", node, "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not node.orelse and isinstance(node.body[-1], _LEAVES):
            self._add("drop", node, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave what an error says as it is."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts as they are."""

    def visit_Assert(self, node: ast.Assert) -> None:
        self.visit(node.test)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and (turned := _TURNED.get(type(node.ops[0]))):
            new = ast.Compare(left=node.left, ops=[turned()], comparators=node.comparators)
            self._add("compare", node, f"({ast.unparse(new)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add("constant", node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            self._add("constant", node, repr(node.value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in _TYPES:
            return
        plain = not any(isinstance(one, ast.Starred) for one in node.args)
        if plain and name not in _EITHER_WAY:
            self._swap(node)
        self.visit(node.func)
        self._visit_each(node.args)
        self._visit_each([word.value for word in node.keywords if word.arg not in _POINTS])

    def _visit_each(self, nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _drop_if_stored(self, node: ast.stmt, targets: Sequence[ast.expr]) -> None:
        """Without it a name would be missing; what it stores elsewhere may be missed by nobody."""
        if targets and all(isinstance(one, (ast.Attribute, ast.Subscript)) for one in targets):
            self._add("drop", node, "pass")

    def _swap(self, node: ast.Call) -> None:
        for first, second in pairwise(node.args):
            if ast.dump(first) != ast.dump(second):
                (a, b), (c, d) = self._span(first), self._span(second)
                call, start = self._span(node), self._span(node)[0]
                text = self.data[slice(*call)]
                a, b, c, d = (place - start for place in (a, b, c, d))
                new = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
                self._add("swap", node, new.decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _add(self, kind: str, node: ast.expr | ast.stmt, new: str) -> None:
        if not self.names and self.file in DATA:
            return
        start, end = self._span(node)
        where, old = ".".join(self.names), " ".join(self.data[start:end].decode().split())
        said = " ".join(new.split())
        self.alike[where, kind, old, said] += 1
        self.found.append(
            Mutant(
                file=self.file, where=where, line=node.lineno, kind=kind, old=old, new=said,
                nth=self.alike[where, kind, old, said] - 1,
                broken=(self.data[:start] + new.encode() + self.data[end:]).decode(),
            )
        )  # fmt: skip


def _short(text: str, most: int = 60) -> str:
    return f"`{text if len(text) <= most else text[: most - 3] + '...'}`"
