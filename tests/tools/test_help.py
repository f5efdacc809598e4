"""Every command's help shows an example, fits 80 columns, and names its JSON keys."""

from __future__ import annotations

import pytest

from qgraph.tools.main import app
from tests.tools.command import run

COMMANDS = (
    "bench", "check", "compile", "convert", "cost", "diff", "explain", "formats", "inspect", "predict",
    "recipes", "report", "reproduce", "train", "whatif",
)  # fmt: skip


def test_these_are_the_commands() -> None:
    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert sorted(names) == [*COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_shows_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    words = " ".join(result.out.split())
    assert f"xample: qgraph {name} " in words
    assert "--json" in words
    assert "JSON" in words.replace("Print JSON", "")
    assert max(map(len, result.out.splitlines())) <= 80


def test_the_first_help_lists_the_commands_and_an_example() -> None:
    result = run("--help")
    assert "For example: qgraph convert" in " ".join(result.out.split())
    assert all(f"\n  {name} " in result.out for name in COMMANDS)


def test_an_unknown_command_or_option_names_the_nearest() -> None:
    for arguments, near in (
        (("inspct", "x"), "inspect"),
        (("inspect", "x", "--moduel", "a"), "--module"),
    ):
        result = run(*arguments)
        assert result.code == 2
        assert near in result.err
