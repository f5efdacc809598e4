"""The same bits with any number of threads and without a compiler, and a report that names the reason."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qgraph.ops import KERNELS, describe_lowering
from qgraph.ops.cpu import build
from tests.ops.digest import digest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _compiler() -> None:
    """Not asked before a test runs: the answer takes a build."""
    if (why := build.why_unavailable()) is not None:
        pytest.skip(why)


needs_compiler = pytest.mark.usefixtures("_compiler")


def report(**changes: str | None) -> list[str]:
    """Run `tests.ops.digest` with changed environment variables; return its two lines."""
    wanted = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    env = {name: value for name, value in wanted.items() if value is not None}
    command = [sys.executable, "-m", "tests.ops.digest"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def here() -> str:
    return digest()


@needs_compiler
@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_number_of_threads_changes_no_bit(here: str, threads: str) -> None:
    assert report(OMP_NUM_THREADS=threads) == ["cpu kernels", here]


def test_without_a_compiler_the_definitions_run_and_the_report_says_why(
    here: str, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "cache").mkdir()
    found = report(PATH=str(tmp_path / "bin"), CXX=None, QGRAPH_CACHE_DIR=str(tmp_path / "cache"))
    assert found == ["reference (no C++ compiler found (g++ or clang++; set CXX))", here]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a script that stands for the compiler, with a cache of its own."""
    path = tmp_path / "my++"
    path.touch(mode=0o700)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("QGRAPH_CACHE_DIR", str(tmp_path / "cache"))
    return path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'cc1: no room' >&2; echo more >&2; exit 1", "cc1: no room"),
        ("exit 3", "exit status 3"),
    ],
)
def test_a_compiler_that_fails_is_named_with_its_first_line(
    fake_compiler: Path, script: str, reason: str
) -> None:
    fake_compiler.write_text(f"#!/bin/sh\n{script}\n")
    assert build._library.__wrapped__() == f"{fake_compiler} failed: {reason}"


@needs_compiler
def test_kernels_are_built_once_and_kept_in_a_private_cache(fake_compiler: Path) -> None:
    # It hands out the library this process runs, and counts: a real build takes half a minute.
    log, cache = fake_compiler.with_name("log"), fake_compiler.with_name("cache")
    fake_compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\n'
        f'while [ "$1" != -o ]; do echo "$1" >> {log}; shift; done; cp {build.loaded()._name} "$2"\n'
    )
    for _ in range(2):
        assert not isinstance(build._library.__wrapped__(), str)
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    flags = log.read_text().split()
    assert flags.count("-shared") == 1
    assert "-ffp-contract=off" in flags
    assert "-ffast-math" not in flags


@needs_compiler
def test_this_process_reports_what_it_runs() -> None:
    assert describe_lowering("cpu") == "cpu kernels"


def test_without_triton_the_definitions_run_on_a_gpu_and_the_report_says_why() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from qgraph.ops import KERNELS, describe_lowering\n"
        "print(describe_lowering('cuda')); print(sum(k.device == 'cuda' for k in KERNELS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "reference (Triton is not installed)", str(sum(k.device == "cuda" for k in KERNELS)),
    ]  # fmt: skip
