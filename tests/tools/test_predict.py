"""qgraph predict: what it prints, and what it says to input it cannot take."""

from __future__ import annotations

import json

import pytest

from qgraph.tools.show.amounts import bytes_text, count_text, read_count
from tests.tools.command import run

SIZE = ("--params", "1.2B", "--tokens", "100B")


def test_the_numbers_of_json_are_those_of_the_text() -> None:
    found = json.loads(run("predict", *SIZE, "--policy", "mxfp4", "--json").out)
    (entry,) = found["formats"].values()
    assert entry["penalty"] == pytest.approx(0.0241, abs=5e-5)
    assert found["penalty"] == entry["penalty"]
    assert entry["penalty_percent"] == pytest.approx(100 * entry["penalty"] / found["high_loss"])
    text = run("predict", *SIZE, "--policy", "mxfp4").out
    assert f"+{entry['penalty']:.4f} nats, {entry['penalty_percent']:.2f}%" in text
    assert f"critical tokens       {count_text(entry['critical_tokens'])}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_it_says_where_the_law_ends() -> None:
    text = " ".join(run("predict", "--params", "12B", "--tokens", "10T").out.split())
    assert "10T tokens are past the critical 610B" in text
    assert "12B parameters are outside the fit, 41M to 679M" in text
    assert "rule 3 fprop.input" in text
    assert "and nothing else" in text
    inside = run("predict", "--params", "154M", "--tokens", "20B", "--policy", "high").out
    assert "warning" not in inside
    assert "no penalty" in inside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--params", "huge", "--tokens", "1B"), "--params: 'huge' is not a number above zero"),
        (("--params", "1B", "--tokens", "-3"), "--tokens: '-3' is not a number above zero"),
        ((*SIZE, "--policy", "nvfp"), "did you mean 'nvfp4'?"),
        ((*SIZE, "--policy", "/"), "this is a directory"),
    ],
)
def test_bad_input_is_told(arguments: tuple[str, ...], message: str) -> None:
    result = run("predict", *arguments)
    assert result.code == 1
    assert message in result.err
    assert "\n  fix: " in result.err


def test_amounts_are_read_and_written() -> None:
    assert [read_count(t, "-") for t in ("7B", "1.5e9", "10t", "2_000", "3k")] == [
        7e9, 1.5e9, 1e13, 2000, 3000,
    ]  # fmt: skip
    assert [count_text(v) for v in (1.73e15, 1.2e9, 680e6, 12)] == ["1730T", "1.2B", "680M", "12"]
    assert [bytes_text(v) for v in (12, 2**31, 1536)] == ["12 B", "2.15 GB", "1.54 kB"]
