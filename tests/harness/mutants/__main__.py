"""Break the code on purpose, a place at a time, and see whether a test fails.

python -m tests.harness.mutants --list
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pytest
import typer
import yaml

from tests.harness.mutants.draw import EACH, Mutant, drawn
from tests.harness.mutants.forked import Ended, copy_tree, fork, run_tests, warm_up
from tests.harness.mutants.reach import Reached, find_reached, plan_of
from tests.harness.mutants.written import written

SAME = Path(__file__).parent / "same.yaml"
MOST = 30.0  # seconds of tests for one mutant


def main(
    seed: Annotated[int, typer.Option(help="Draws others.")] = 0,
    each: Annotated[int, typer.Option(min=0, help="So many of a kind in a folder.")] = EACH,
    list_them: Annotated[bool, typer.Option("--list", help="Print the mutants, try none.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="The one of this number in the list, or of this id.")
    ] = None,
    same: Annotated[
        bool, typer.Option("--same", help="Try also those that are said to change nothing.")
    ] = False,
    most: Annotated[float, typer.Option(help="Seconds of tests for one mutant.")] = MOST,
    remap: Annotated[
        bool, typer.Option("--remap", help="Find anew which tests reach what: takes minutes.")
    ] = False,
) -> None:
    """Try mutants one after another, in a copy of the tree; fail if a test is missing."""
    mutants = [*drawn(seed, each), *written()]
    chosen = [
        (number, mutant)
        for number, mutant in enumerate(mutants, 1)
        if not only or str(number) in only or mutant.id in only
    ]
    if not chosen:
        sys.exit(f"there are mutants 1 to {len(mutants)}: see --list")
    reasons = {one["id"]: one["why"] for one in yaml.safe_load(SAME.read_text()) or ()}
    if list_them:
        for number, mutant in chosen:
            said = f"\n{'':13}changes nothing: {reasons[mutant.id]}" if mutant.id in reasons else ""
            print(f"{number:3} {mutant}{said}")
        return
    tried = [one for one in chosen if same or only or one[1].id not in reasons]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        missed, seconds = _try_each(tried, Path(folder), most, remap)
    caught = len(tried) - len(missed)
    print(
        f"{len(chosen)} mutants: {caught} of {len(tried)} caught, {len(chosen) - len(tried)} not tried: they "
        f"change nothing; {seconds / 60:.0f} minutes of CPU"
    )
    unknown = [mutant for mutant in missed if mutant.id not in reasons]
    if unknown:
        sys.exit(
            f"{len(unknown)} pass every test: add a test, or say in {SAME.name} why it changes nothing"
        )


def _try_each(
    tried: Sequence[tuple[int, Mutant]], folder: Path, most: float, remap: bool
) -> tuple[list[Mutant], float]:
    """Return the mutants that no test caught, and the seconds of CPU of all."""
    warm_up()
    known = find_reached(folder, remap)
    tree = folder / "tree"
    copy_tree(tree)
    missed, seconds = [], 0.0
    for number, mutant in tried:
        slow = "/gpu/" in mutant.file or mutant.kind == "written"  # interpreted, or built anew
        plan = plan_of(mutant, known, 3 * most if slow else most)
        word, used = _attempt(mutant, plan, tree, known)
        print(f"{number:3} {mutant}\n    {word}, {used:.0f} s", flush=True)
        seconds += used
        if word.startswith("MISSED"):
            missed.append(mutant)
    return missed, seconds


def _attempt(
    mutant: Mutant, plan: Sequence[tuple[str, list[str]]], tree: Path, known: Reached
) -> tuple[str, float]:
    """Return what became of a mutant, and the seconds of CPU that it took."""
    if not plan:
        return "MISSED: no test reaches it", 0.0
    file, said = tree / mutant.file, tree.parent / "said"
    sound = file.stat()
    said.write_text("")
    whole = file.read_text()
    file.write_text(mutant.broken)
    # Python keeps what it compiled for a file's time and size: no other mutant has this time.
    os.utime(file, (sound.st_atime, sound.st_mtime + 1 + int(mutant.id, 16) % 10**6))

    def work() -> int:
        if mutant.kind == "written":  # kernels that are built: not for the user's cache
            os.environ["QGRAPH_CACHE_DIR"] = str(tree.parent / "kernels")
        for part in (plan[:1], plan[1:4], plan[4:]):  # to start pytest takes as long as many tests
            ids = {test for _, some in part for test in some}
            files = dict.fromkeys(file for file, _ in part)
            status = run_tests([*files, "-x"], _Some(ids, said), tree) if part else 0
            if status not in (0, 5):
                return status
        return 0

    expected = sum(known.seconds[test] for _, ids in plan for test in ids)
    try:
        ended = fork(tree, work, cpu=60 + 3 * expected)
    finally:
        file.write_text(whole)
        os.utime(file, ns=(sound.st_atime_ns, sound.st_mtime_ns))
        shutil.rmtree(tree.parent / "tmp", ignore_errors=True)
    return _word(ended, said.read_text(), plan), ended.seconds


def _word(ended: Ended, said: str, plan: Sequence[tuple[str, list[str]]]) -> str:
    if ended.status == 0:
        count = sum(len(ids) for _, ids in plan)
        return f"MISSED by {count} tests of {len({file for file, _ in plan})} files"
    if said:
        return f"caught by {said}"
    return (
        "caught: it ends the process, or hangs" if ended.status is None else "caught: nothing runs"
    )


class _Some:
    """Lets only some tests of a file run; writes down which failed."""

    def __init__(self, ids: set[str], said: Path) -> None:
        self.ids, self.said = ids, said

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.ids]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.said.write_text(report.nodeid)


if __name__ == "__main__":
    typer.run(main)
