"""Nothing that changes numbers is left out of the key under which Inductor keeps code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import qgraph
from qgraph.doors.cache_key import hash_of, source_hash, sources

HOME = Path(qgraph.__file__).parent


def test_every_file_of_code_is_in_the_key() -> None:
    found = {name.lstrip("/") for name, _ in sources(HOME)}
    here = {
        os.path.relpath(Path(folder) / file, HOME)
        for folder, _, files in os.walk(HOME, followlinks=True)
        for file in files
        if file.endswith((".py", ".cpp"))
    }
    assert here == found
    assert {"ops/cpu/cpu.cpp", "passes/joint/split_bias.py", "numerics/cast.py"} <= found


@pytest.mark.parametrize(
    "file",
    [
        "passes/lower/fuse_rotations.py",
        "numerics/cast.py",
        "ops/cpu/cpu.cpp",
        "passes/graph/__init__.py",
    ],
)
def test_a_change_at_any_depth_changes_the_key(file: str, tmp_path: Path) -> None:
    copy = tmp_path / "qgraph"
    shutil.copytree(HOME, copy)
    assert hash_of(copy) == source_hash()
    with (copy / file).open("a") as changed:
        changed.write(" ")
    assert hash_of(copy) != source_hash()


def test_a_file_that_moves_changes_the_key(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("x = 1\n")
    before = hash_of(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    assert hash_of(tmp_path) != before
