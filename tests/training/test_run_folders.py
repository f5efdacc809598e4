"""The folder of a run: started, broken off, resumed, and never another run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qgraph.errors import CheckpointError, RunError
from qgraph.training.run_folders import SETTINGS, run_folder

FACTS: dict[str, Any] = {"model": "m", "steps": 4, "save_every": 2}


def train(
    out: Path, *, resume: bool = False, files: tuple[str, ...] = ("a/x", "b"), **facts: Any
) -> None:
    """Write files of a run into its folder, each saying how many steps the run has."""
    with run_folder(str(out), {**FACTS, **facts}, resume=resume) as folder:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str({**FACTS, **facts}["save_every"]))


def test_results_are_in_the_folder_when_the_run_ends_and_a_resumed_runs_replace_them(
    tmp_path: Path,
) -> None:
    out = tmp_path / "parent" / "run"
    train(out)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", SETTINGS]
    assert (out / "a" / "x").read_text() == "2"
    train(out, resume=True, files=("a/y", "b"), save_every=3)  # which changes no number
    assert [path.name for path in (out / "a").iterdir()] == ["y"]
    assert (out / "b").read_text() == "3"


def test_a_run_that_is_broken_off_can_be_resumed_and_leaves_no_results(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunError, match="run: cannot write here: Is a directory"):
        train(out, files=("half/x", "half"))  # the second cannot be written
    assert not (out / "half").exists()
    train(out, resume=True)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", SETTINGS]


def test_no_run_takes_the_place_of_another(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunError, match="no run to resume\n  fix: leave --resume out"):
        train(out, resume=True)
    train(out)
    with pytest.raises(RunError, match="a run is here already\n  fix: --resume, or another --out"):
        train(out)
    said = "was started with model m, not n, and steps\n"
    with pytest.raises(RunError, match=said):
        train(out, resume=True, model="n", steps=5)
    (out / SETTINGS).write_text('{"model": "m"}')
    with pytest.raises(CheckpointError, match="damaged: 'steps'"):
        train(out, resume=True)
    with pytest.raises(RunError, match="already exists"):
        train(out / "a")
    with pytest.raises(RunError, match="b/c: cannot write here: Not a directory"):
        train(out / "b" / "c")
    with pytest.raises(RunError, match="--out is empty"), run_folder(" ", FACTS, resume=False):
        pass
