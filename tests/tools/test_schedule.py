"""Schedules from the command line: shown by check, refused by train before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools.command import run
from tests.training.models import NVFP4

LATE = f"""{NVFP4}
schedule:
  - {{at: 82%, set: {{fprop: high}}}}
  - {{on: loss_spike, for: 100, match: {{module: "*.mlp.*"}}, set: {{wgrad: high}}}}
monitors:
  - {{watch: loss_spike, action: stop}}
"""


@pytest.fixture
def late(tmp_path: Path) -> Path:
    file = tmp_path / "late.yaml"
    file.write_text(LATE)
    return file


def test_check_shows_when_and_what(late: Path) -> None:
    shown = run("check", str(late))
    assert shown.code == 0
    assert (
        "  schedule[0]: at 82%: set fprop high\n"
        "  schedule[1]: on loss_spike, for 100 steps (module *.mlp.*): set wgrad high\n"
        "  monitors[0]: loss_spike: loss_spike of 100 steps above 7, every step: stop\n"
    ) in shown.out
    found = json.loads(run("check", str(late), "--json").out)
    assert found["schedule"][0] == "at 82%: set fprop high"
    assert found["resolved"]["schedule"][0]["set"] == {"fprop": "high"}


def test_train_refuses_a_switch_past_its_end(late: Path, tmp_path: Path) -> None:
    late.write_text(LATE.replace("82%", "82"))
    result = run("train", "preset:tiny-llama", "--policy", str(late), "--steps", "50",
                 "--out", str(tmp_path / "out"))  # fmt: skip
    assert result.code == 1
    assert (
        f"error: {late}:16:10: schedule[0].at: 82 is past the end: the run has 50 steps"
        in result.err
    )
    assert "\n  fix: write at: below 50, or a percent" in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["late.yaml"]
