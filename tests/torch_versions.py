"""`make test-torch`: the telling tests on the torch that is installed, as a row of a table for each group.

See README.md. Prints Markdown, and what failed; exits with 1 if something did.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
import transformers

ROOT = Path(__file__).parents[1]
FIVE = ("gpt2", "llama", "mixtral", "mamba2", "resnet")
# Each group is what one call of pytest takes.
GROUPS: dict[str, tuple[str, ...]] = {
    "private names": ("tests/compat",),
    "passes, golden graphs": ("tests/passes",),
    "convert and compile": ("tests/doors/test_doors.py", "tests/doors/test_capture.py"),
    "never silently high": (
        "tests/doors/test_never_silent.py",
        "tests/seams/test_what_runs_elsewhere.py",
    ),
    "the same bits: eager, op by op, Inductor": (
        "tests/doors/test_equal_to_eager.py",
        "tests/doors/test_high_is_inductor.py",
        "tests/doors/test_shapes.py",
        "-k",
        "not dynamic_batch",
    ),
    "five architectures": (
        "tests/doors/test_architectures.py",
        "--full",
        "-k",
        " or ".join(FIVE),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a group: how many tests passed, which failed, and why others were left out."""

    passed: int
    failed: list[str]
    skipped: Counter[str]

    def cell(self) -> str:
        """Return it as a cell of the table."""
        parts = [f"{self.passed} passed"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed: {', '.join(self.failed)}")
        parts += [f"{count} skipped: {why}" for why, count in self.skipped.items()]
        return "; ".join(parts)


def read(report: Path) -> Found:
    """Return what a report of pytest's in JUnit's format says."""
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        left = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name", ""))
        elif left is not None:
            skipped[left.get("message", "")] += 1
        else:
            passed += 1
    return Found(passed=passed, failed=failed, skipped=skipped)


def run(arguments: tuple[str, ...]) -> Found:
    """Run one group; what it prints is printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--tb=short", "-W", "ignore", "--draw=torch"]
        subprocess.run([*command, f"--junitxml={report}", *arguments], cwd=ROOT, check=False)
        if not report.exists():
            return Found(passed=0, failed=["pytest itself"], skipped=Counter())
        return read(report)


def main(names: list[str]) -> int:
    """Run the groups of these names, all if none is given; return the exit status."""
    found = {name: run(GROUPS[name]) for name in names or GROUPS}
    print(f"\n| group | torch {torch.__version__}, transformers {transformers.__version__} |")
    print("|---|---|")
    for name, what in found.items():
        print(f"| {name} | {what.cell()} |")
    return int(any(what.failed or not what.passed for what in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
