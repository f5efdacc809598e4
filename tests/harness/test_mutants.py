"""The mutants' harness: what is drawn, that it stays drawn, and what became of a mutant."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.harness.mutants.draw import EACH, FOLDERS, KINDS, Mutant, drawn, mutants_in, mutants_of
from tests.harness.mutants.reach import Reached, plan_of, telling
from tests.harness.mutants.written import written

ROOT = Path(__file__).parents[2]
SAME = ROOT / "tests/harness/mutants/same.yaml"
SOURCE = '''
"""Worth 1."""
SIZE: Literal[3] = 4
@cached(5)
def f(x: int = 6, *, deep: bool = False) -> Array[7]:
    """Eight is 8."""
    if x < deep:
        raise ValueError("9", 10 > x)
    warn(f"{11}", stacklevel=12)
    box.at = g(x, deep)
    name = max(x, deep)
    assert x is name, "13"
    return name
class Box:
    def __repr__(self): return "14" * 15
'''
TOY = '''
def top(a, b):
    """The larger."""
    if a > b:
        return a
    return b

def count(n):
    while n > 0:
        n -= 1
    return n
'''
# What it prints of each mutant of TOY, with tests of a few of its values.
TRY = """
import sys
from pathlib import Path
from tests.harness.mutants.__main__ import _attempt
from tests.harness.mutants.draw import mutants_in
from tests.harness.mutants.reach import Reached
tree = Path(sys.argv[1])
known = Reached(seconds={"tests/test_toy.py::test_top": -19.7, "tests/test_toy.py::test_count": 0.0})
for mutant in mutants_in("toy.py", (tree / "toy.py").read_text()):
    plan = [("tests/test_toy.py", list(known.seconds))]
    print(mutant.old, "->", mutant.new, "=", _attempt(mutant, plan, tree, known)[0])
"""


@functools.cache
def every() -> list[Mutant]:
    return [*drawn(0), *written()]


def test_places_are_found_and_what_is_only_said_is_not() -> None:
    found = [f"{m.kind} {m.where}: {m.old} -> {m.new}" for m in mutants_in("f.py", SOURCE)]
    assert found == [
        "constant : 4 -> 5",
        "constant f: 6 -> 7",
        "constant f: False -> True",
        'drop f: if x < deep: raise ValueError("9", 10 > x) -> pass',
        "compare f: x < deep -> (x <= deep)",
        'drop f: warn(f"{11}", stacklevel=12) -> pass',
        "drop f: box.at = g(x, deep) -> pass",
        "swap f: g(x, deep) -> g(deep, x)",
        "compare f: x is name -> (x is not name)",
    ]


def test_mutants_are_those_of_the_seed_and_stay_where_nothing_changes() -> None:
    mutants = every()
    assert len(mutants) == EACH * len(FOLDERS) * len(KINDS) + 10
    assert len({mutant.id for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        sound = (ROOT / mutant.file).read_text()
        assert mutant.broken != sound
        if mutant.file.endswith(".py"):
            assert ast.dump(ast.parse(mutant.broken)) != ast.dump(ast.parse(sound))
    ids = [mutant.id for mutant in mutants_in("f.py", SOURCE)]
    longer = mutants_in("f.py", SOURCE.replace("    name =", "    more = h(1)\n    name ="))
    assert [mutant.id for mutant in longer if mutant.id in ids] == ids


def test_every_mutant_that_is_said_to_change_nothing_is_one() -> None:
    said = yaml.safe_load(SAME.read_text()) or []
    ids = {mutant.id for folder in FOLDERS for mutant in mutants_of(folder)}  # drawn or not
    assert [one["id"] for one in said if one["id"] not in ids] == []
    assert all(len(one["why"]) > 20 for one in said)


def test_functions_tell_of_their_calls() -> None:
    found = telling("f.py", f'"""Of two."""\nfrom __future__ import annotations\n{TOY}')
    assert found.index("annotations") < found.index("qgraph.told") < found.index("def top")
    assert '    """The larger."""\n    _reached("f.py:top")\n    if a' in found.replace("'", '"')
    assert "    _reached('f.py:count')\n    while" in found
    assert (
        telling("f.py", SOURCE.replace("def __repr__", "def show")).count("told") == 1
    )  # a line of its own


def test_tests_that_reach_a_place_are_run_first() -> None:
    mutant = replace(every()[0], file="passes/work.py", where="quantize_of", tests="")
    place, mirror = "passes/work.py:quantize_of", "tests/passes/test_a.py"
    known = Reached(
        seconds={
            f"{mirror}::one": 3.0, "tests/test_b.py::two": 1.0, "tests/test_b.py::six": 9.0, "c.py::no": 0.0,
        },
        tests={place: [f"{mirror}::one", "tests/test_b.py::two"]},
    )  # fmt: skip
    whole = [(mirror, [f"{mirror}::one"]), ("tests/test_b.py", ["tests/test_b.py::two"])]
    assert plan_of(mutant, known, 10) == whole
    assert plan_of(mutant, known, 27) == [*whole, ("tests/test_b.py", ["tests/test_b.py::six"])]
    assert plan_of(mutant, known, 2) == whole[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_mutant_is_caught_missed_or_stopped(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "toy.py").write_text(TOY)
    (tree / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tree / "tests" / "test_toy.py").write_text(
        "from toy import count, top\n"
        "def test_top():\n    assert top(1, 2) == 2\n"
        "def test_count():\n    assert count(3) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tree)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    caught = "caught by tests/test_toy.py::"
    assert done.stdout.splitlines() == [
        "if a > b: return a -> pass = MISSED by 2 tests of 1 files",
        "a > b -> (a >= b) = MISSED by 2 tests of 1 files",
        f"n > 0 -> (n >= 0) = {caught}test_count",
        f"0 -> 1 = {caught}test_count",
        "n -= 1 -> pass = caught: it ends the process, or hangs",
        f"1 -> 2 = {caught}test_count",
    ]
    assert (tree / "toy.py").read_text() == TOY
