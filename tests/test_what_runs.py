"""What `make test` leaves out: a tenth of it each time, by the commit; and README.md lists all of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cases import mostly_full
from tests.conftest import drawn

TESTS = Path(__file__).parent
SUITE = """
import pytest
@pytest.mark.full
@pytest.mark.parametrize("n", range(100))
def test_many(n): pass
@pytest.mark.full
@pytest.mark.parametrize("n", range(100))
def test_more(n): pass
@pytest.mark.only_full
def test_long(): pass
def test_short(): pass
"""


def run(folder: Path, *arguments: str) -> Counter[str]:
    """How often each function of SUITE ran."""
    (folder / "test_it.py").write_text(SUITE)
    command = [
        sys.executable, "-m", "pytest", "-v", "-W", "ignore", "-p", "tests.conftest", "--rootdir",
        str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env={"PYTHONPATH": str(TESTS.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Counter(re.findall(r"::(test_\w+)\S* PASSED", done.stdout))


def test_a_tenth_runs_and_all_of_it_when_asked(tmp_path: Path) -> None:
    some = run(tmp_path, "test_it.py", "--draw", "a commit")
    assert some["test_short"] == 1
    assert some["test_long"] == 0
    assert 1 <= some["test_many"] <= 30
    assert some["test_many"] == some["test_more"]  # cases of one name are drawn together
    every = run(tmp_path, "test_it.py", "--full")
    assert every == {"test_many": 100, "test_more": 100, "test_long": 1, "test_short": 1}
    assert run(tmp_path, "test_it.py::test_long") == {"test_long": 1}


def test_every_case_is_drawn_by_some_commit_and_by_a_tenth_of_them() -> None:
    cases = [f"file.py {number}" for number in range(300)]
    times = Counter(case for commit in range(100) for case in cases if drawn(str(commit), case))
    assert set(times) == set(cases)
    assert times.total() == pytest.approx(300 * 100 / 10, rel=0.05)


def test_a_case_that_is_not_there_cannot_be_the_telling_one() -> None:
    with pytest.raises(AssertionError, match=r"no such cases: \{'c'\}"):
        mostly_full(("a", "b"), ("c",))


def left_out() -> set[str]:
    """Every function that is marked, or has cases that are, as `file.py::function`."""
    found = set()
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            marks = map(ast.unparse, getattr(node, "decorator_list", ()))
            if any(re.search(r"mostly_full\(|mark\.(only_)?full\b", mark) for mark in marks):
                assert isinstance(node, ast.FunctionDef)
                found.add(f"{file.relative_to(TESTS)}::{node.name}")
    return found


def test_the_readme_lists_what_is_left_out() -> None:
    text = (TESTS / "README.md").read_text()
    assert set(re.findall(r"^\| `tests/(\S+\.py::\w+)` \|", text, re.MULTILINE)) == left_out()
