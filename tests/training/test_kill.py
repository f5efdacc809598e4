"""kill -9, and on from the last checkpoint: the bits of a run that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(kills: int) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.harness.kill", "--kills", str(kills), "--steps", "6",
            "--save-every", "2", "--seed", "5", "--json",
        ],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["differs"] == []
    lives = found["lives"]
    assert [life["finished"] for life in lives] == [False] * kills + [True]
    assert lives[0]["step"] == 3  # under this seed
    assert lives[1]["start"] == 2  # it went on, and did not begin anew
