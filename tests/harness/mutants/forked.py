"""Tests in a copy of the tree, each time in a new fork of one process that has imported what is slow.

That process must not import qgraph: a fork imports the copy's.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house import ROOT

_TREE = (
    "qgraph",
    "passes",
    "tools",
    "tests",
    "pyproject.toml",
    "Makefile",
    "README.md",
    ".gitignore",
)
_SLOW = (
    "torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.export", "torch.distributed",
    "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer", "accelerate",
    "safetensors.torch", "hypothesis", "gfloat", "ml_dtypes", "matplotlib.pyplot", "scipy.optimize",
    "pydantic", "yaml", "typer", "rich", "xdist",
)  # fmt: skip
DRAW = "mutants"  # which of the tests marked full are tried


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a fork ended: its exit status, None if it was stopped or died; seconds of CPU."""

    status: int | None
    seconds: float


def copy_tree(to: Path) -> None:
    """Copy what the tests need of the checkout to a new folder."""
    to.mkdir()
    for name in _TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(ROOT / name, to / name)


def warm_up() -> None:
    """Import what takes seconds, without a thread that a fork would lack."""
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", TORCHINDUCTOR_COMPILE_THREADS="1")
    for name in _SLOW:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith("qgraph")], "qgraph is the fork's"


def fork(tree: Path, work: Callable[[], int], cpu: float) -> Ended:
    """Run `work` in a fork that lives in `tree`, for `cpu` seconds, ten times as many by the clock."""
    sys.stdout.flush()
    start = time.monotonic()
    child = os.fork()
    if not child:
        status = 70
        try:
            _enter(tree, cpu)
            status = work()
        except BaseException:  # noqa: BLE001  # the fork must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() - start > 10 * cpu:
            _kill(child)
        time.sleep(0.02)
    _kill(child)  # what it may have started
    _, code, used = ended
    status = os.waitstatus_to_exitcode(code)
    return Ended(status=status if status >= 0 else None, seconds=used.ru_utime + used.ru_stime)


def _kill(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _enter(tree: Path, cpu: float) -> None:
    os.setsid()
    log = os.open(tree.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    limit = max(1, int(cpu))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    os.chdir(tree)
    os.environ.update(
        PYTHONPATH=str(tree),
        TORCHINDUCTOR_CACHE_DIR=str(tree.parent / "inductor"),
    )


def run_tests(arguments: Sequence[str], plugin: object, tree: Path) -> int:
    """Run pytest in a fork; return its exit status."""
    place = [f"--basetemp={tree.parent / 'tmp'}", f"--rootdir={tree}", "--draw", DRAW]
    # The last looks through all of memory for what was left open, again and again.
    without = [f"no:{name}" for name in ("cacheprovider", "xdist", "unraisableexception")]
    options = [*place, *(word for name in without for word in ("-p", name))]
    return int(pytest.main([*options, *arguments], plugins=[plugin]))
