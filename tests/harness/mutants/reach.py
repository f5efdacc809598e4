"""Which tests reach which function: found by running them once, in a copy that tells of each call.

Kept in `build/`, and found anew for the files of tests that have changed since.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness.mutants.draw import FOLDERS, Mutant
from tests.harness.mutants.forked import copy_tree, fork, run_tests
from tests.house import ROOT

KEPT = ROOT / "build" / "reached.json"
# Minutes each, and after what the others see: what they alone would catch counts as missed. The
# rules of the house and of torch's names read the source and run none of it.
_LEFT_OUT = (
    "tests/test_house.py", "tests/test_what_runs.py", "tests/compat/", "tests/harness/",
    "tests/doors/test_zoo.py", "tests/doors/test_high_is_inductor.py", "tests/doors/test_recipes.py",
    "tests/doors/test_architectures.py", "tests/doors/test_cache.py", "tests/predict/test_offline.py",
    "tests/tools/test_train.py", "tests/training/test_kill.py", "tests/training/test_processes.py",
    "tests/training/test_reproduce.py",
)  # fmt: skip
_SHORT = 5.0  # seconds of a file of tests that is run whole
_TELLS = """
import os, sys
_test, _, _phase = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")
now = _test if _phase == "(call)" else _test.partition("::")[0]
_seen = set()
_out = open(f"{os.environ['QGRAPH_REACHED']}/{os.getpid()}", "a", buffering=1)
def reached(name):
    said = f"{now}\\t{name}"
    if said not in _seen:
        _seen.add(said)
        _out.write(f"{said}\\n")
"""


@dataclass(kw_only=True)
class Reached:
    """`seconds` of each test that passes, by its id; `tests` that reach a function, or whole files of them.

    A function is `file:name`. What a fixture or an import reaches is reached by the file. `read` has the
    hash of each file of tests as it was run.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)

    def of(self, mutant: Mutant) -> set[str]:
        """Return the ids of tests, and files of tests, that reach the mutant's place."""
        if mutant.tests:
            return {mutant.tests}
        told = dict(_functions(ast.parse((ROOT / mutant.file).read_text())))
        if mutant.where in told:
            return {*self.tests.get(f"{mutant.file}:{mutant.where}", ())}
        every = [
            f"{mutant.file}:{name}" for name in told
        ]  # outside of functions: those of the file
        return {test for name in every for test in self.tests.get(name, ())}


def find_reached(folder: Path, again: bool) -> Reached:
    """Return what tests reach, as it was kept, after running the files of tests that are new."""
    known = Reached(**json.loads(KEPT.read_text())) if KEPT.exists() and not again else Reached()
    files = {
        str(path.relative_to(ROOT)): _hash(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
    }
    files = {name: found for name, found in files.items() if not name.startswith(_LEFT_OUT)}
    todo = [name for name, found in files.items() if known.read.get(name) != found]
    _forget(known, {*todo, *(known.read.keys() - files.keys())})
    tree = folder / "told"
    if todo:
        copy_tree(tree)
        _tell(tree)
    for number, name in enumerate(todo):
        used = _run(name, tree, known)
        known.read[name] = files[name]
        print(f"map {number + 1} of {len(todo)}: {name}, {used:.0f} s", flush=True)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(vars(known)))
    return known


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _file(name: str) -> str:
    return name.partition(":")[0]


def _forget(known: Reached, files: set[str]) -> None:
    known.seconds = {test: s for test, s in known.seconds.items() if _file(test) not in files}
    for name, found in known.tests.items():
        known.tests[name] = [test for test in found if _file(test) not in files]
    for name in files:
        known.read.pop(name, None)


def _run(name: str, tree: Path, known: Reached) -> float:
    """Run a file of tests; add what it reaches. Return its seconds of CPU."""
    out = tree.parent / "reached" / name.replace("/", ".")
    out.mkdir(parents=True)

    def work() -> int:
        os.environ["QGRAPH_REACHED"] = str(out)
        return run_tests([name], _Recorder(name, out), tree)

    ended = fork(tree, work, cpu=1200)
    took = out / "seconds.json"
    if not took.exists():
        print(f"{name} does not run here: exit status {ended.status}", flush=True)
        return ended.seconds
    known.seconds |= json.loads(took.read_text())
    found = defaultdict(set)
    for told in out.iterdir():
        if told.suffix != ".json":
            for line in told.read_text().splitlines():
                test, _, function = line.partition("\t")
                found[function].add(test or name)
    for function, tests in found.items():
        kept = {test for test in tests if test in known.seconds or test == name}
        known.tests[function] = sorted(
            {*known.tests.get(function, ())} | ({name} if name in kept else kept)
        )
    return ended.seconds


class _Recorder:
    """Says which test runs, how long it took, and whether it passed."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        start = sum(os.times()[:4])  # of CPU, its processes' too: the clock counts what others do
        done = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return done

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._now(self.name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._now(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self._now(self.name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self.failed:
            print(f"not passed in the copy: {sorted(self.failed)}")
        passed = {test: took for test, took in self.seconds.items() if test not in self.failed}
        (self.out / "seconds.json").write_text(json.dumps(passed))

    @staticmethod
    def _now(said: str) -> None:
        if (told := sys.modules.get("qgraph.told")) is not None:
            vars(told)["now"] = said


def _tell(tree: Path) -> None:
    """Let every function of the copy say when it is called."""
    (tree / "qgraph" / "told.py").write_text(_TELLS)
    for folder in FOLDERS:
        for path in sorted((tree / folder).rglob("*.py")):
            path.write_text(telling(str(path.relative_to(tree)), path.read_text()))


def telling(file: str, text: str) -> str:
    """Return the source of a file whose functions say their names when they are called."""
    tree = ast.parse(text)
    added = {}
    for name, node in _functions(tree):
        first = node.body[ast.get_docstring(node) is not None :] or node.body
        line = min(one.lineno for one in (first[0], *getattr(first[0], "decorator_list", ())))
        if line > node.lineno:
            added[line] = f"{' ' * first[0].col_offset}_reached({file + ':' + name!r})\n"
    if added:
        after = [n.end_lineno or 0 for n in tree.body if _comes_first(n)]
        added[max(after, default=0) + 1] = "from qgraph.told import reached as _reached\n"
    lines = text.splitlines(keepends=True)
    return "".join(added.get(number, "") + line for number, line in enumerate(lines, 1))


def _comes_first(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _functions(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and their names, but Triton's, whose source Triton reads."""
    for child in ast.iter_child_nodes(node):
        name = above
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
            name = f"{above}.{child.name}".lstrip(".")
        if isinstance(child, ast.FunctionDef):
            if any(ast.unparse(one).startswith("jit") for one in child.decorator_list):
                continue
            yield name, child
        yield from _functions(child, name)


def plan_of(mutant: Mutant, known: Reached, most: float) -> list[tuple[str, list[str]]]:
    """Return files of tests, each with the ids of those to run, one after another.

    Tests that reach the place come first; of these the files that are named after it, then those of the
    folder that mirrors the mutant's, then cheap ones; up to `most` seconds. Then the other tests of the
    same files, up to a third of that: what one test has computed and kept, the next may look at.
    """
    reaching = known.of(mutant)
    every = defaultdict(list)
    for test in known.seconds:
        every[_file(test)].append(test)
    first, rest = {}, {}
    for file in {_file(test) for test in reaching}:
        short = sum(known.seconds[test] for test in every[file]) < _SHORT
        whole = short or file in reaching
        first[file] = [test for test in every[file] if whole or test in reaching]
        rest[file] = [test for test in every[file] if test not in {*first[file]}]
    mirror = "tests/" + mutant.file.removeprefix("qgraph/").partition("/")[0] + "/"
    names = _words(mutant.file) | _words(mutant.where)

    def rank(file: str, tests: list[str]) -> tuple[int, bool, float, str]:
        cost = sum(known.seconds[test] for test in tests)
        return -len(names & _words(Path(file).stem)), not file.startswith(mirror), cost, file

    return [
        step
        for part, room in ((first, most), (rest, most / 3))
        for step in _cheapest(sorted(part.items(), key=lambda one: rank(*one)), known, room)
    ]


def _words(name: str) -> set[str]:
    """Return the words of a name, without endings: `insert_gradients.py` and `gradient` share one."""
    return {word.rstrip("s") for word in re.findall("[a-z0-9]+", name.lower())} - {"test", "py"}


def _cheapest(
    files: Iterable[tuple[str, list[str]]], known: Reached, most: float
) -> Iterator[tuple[str, list[str]]]:
    for file, tests in files:
        some = []
        for test in sorted(tests, key=lambda name: known.seconds[name]):
            if known.seconds[test] <= most:
                most -= known.seconds[test]
                some.append(test)
        if some:
            yield file, some
