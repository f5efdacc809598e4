"""What runs when (see README.md), and what every test shares: one thread, and garbage collected between."""

from __future__ import annotations

import datetime
import gc
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Workers share the cores, and threads of one that wait for each other keep the other from its work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# So many objects may be left behind before they are looked through.
LEFT = 500_000


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("what runs when")
    group.addoption("--full", action="store_true", help="run all tests")
    group.addoption(
        "--draw", metavar="COMMIT", help="run the tenth of the full tests that this commit draws"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.draw is None:  # workers are told what the main process found
        config.option.draw = _commit() or datetime.datetime.now(datetime.UTC).date().isoformat()


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.full:
        return "every test, however long"
    return f"of the full tests, the tenth that {config.option.draw} draws (--full: all of them)"


def drawn(draw: str, case: str) -> bool:
    """Whether `draw`, a commit, draws this case of ten."""
    return int(hashlib.sha256(f"{draw} {case}".encode()).hexdigest(), 16) % 10 == 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for test-full, unless a test was named on the command line."""
    if config.option.full or any("::" in argument for argument in config.args):
        return
    left = [item for item in items if not _runs(item, config.option.draw)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if _runs(item, config.option.draw)]


def _runs(item: pytest.Item, draw: str) -> bool:
    if item.get_closest_marker("only_full"):
        return False
    if not item.get_closest_marker("full"):
        return True
    # Tests of one case share what is costly about it: they are drawn together.
    file, _, test = item.nodeid.partition("::")
    _, bracket, case = test.partition("[")
    return drawn(draw, f"{file} {case if bracket else test}")


def pytest_collection_finish() -> None:
    """Take what is loaded now for permanent: looking through it again and again is a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()


def pytest_unconfigure() -> None:
    gc.unfreeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    if gc.get_count()[0] > LEFT:
        gc.collect()
