"""Tables: one in each style, word for word, and --table on each command that has one."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest

from qgraph.tools.bench import _print_many
from qgraph.tools.show.tables import STYLES, draw
from tests.tools.command import Result, run
from tests.tools.looked_at import FOUR, save_model

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("module", "count", "share", "operands")
# What a style could take for its own: pipes, tabs, underscores, braces, percents; and words to wrap.
ROWS = [
    ("model.layers.{0-2}.self_attn.{q,k}_proj", "x12", "6.3%", "input e2m1/1x16 rht stochastic, weight e2m1"),
    ("lm_head", "x1", "100.0%", "high: |x| < 2^-3, & so\ton"),
    ("", "x0", "0.0%", ""),
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_table_is_the_golden_text(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = "\n".join(draw(NAMES, ROWS, style, right=("count", "share"))) + "\n"
    file = GOLDEN / f"table_{style}.txt"
    if os.environ.get("QGRAPH_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def test_a_plain_table_stays_within_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = draw(("name", "words"), [("a" * 30, "word " * 40), ("b", "no-hyphen-breaks " * 9)])
        assert max(map(len, lines)) <= columns
        assert not any(line.endswith(("-", " ")) for line in lines)
        assert all(line.startswith(("name", "a" * 30 + "  word", "b ", " " * 32)) for line in lines)


def test_no_rows_are_a_head_alone() -> None:
    assert draw(NAMES, []) == ["module  count  share  operands"]
    assert draw(NAMES, [], "tsv") == ["\t".join(NAMES)]
    assert len(draw(NAMES, [], "github")) == 2
    assert draw(NAMES, [], headed=False) == []


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with a model, a policy and what converting printed."""
    folder = tmp_path_factory.mktemp("looked")
    (folder / "four.yaml").write_text(FOUR)
    model, out = save_model(folder / "model", layers=1), folder / "converted"
    arguments = ("--policy", str(folder / "four.yaml"), "--out", str(out), "--length", "16")
    return folder, run("convert", str(model), *arguments, "--table", "tsv")


def test_converting_prints_the_table_that_inspect_prints(converted: tuple[Path, Result]) -> None:
    folder, result = converted
    assert result.code == 0
    assert result.out == run("inspect", str(folder / "converted"), "--table", "tsv").out
    for word in ("policy four:", "quantization runs on:", "wrote "):
        assert word in result.err


COMMANDS = {
    "inspect": (("inspect", "{0}/converted"), 1),
    "inspect --sites": (("inspect", "{0}/converted", "--sites"), 1),
    "cost": (("cost", "{0}/model", "--policy", "{0}/four.yaml", "--length", "32"), 3),
    "recipes": (("recipes",), 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_its_tables_alone(name: str, converted: tuple[Path, Result]) -> None:
    command, count = COMMANDS[name]
    arguments = [part.format(converted[0]) for part in command]
    plain = run(*arguments)
    tsv = run(*arguments, "--table", "tsv")
    assert (plain.code, tsv.code) == (0, 0), tsv.err
    # Tables of the same words, each row as wide as its head, a blank line between.
    tables = tsv.out.strip("\n").split("\n\n")
    assert len(tables) == count
    for table in tables:
        rows = list(csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 2
        assert all(cell == cell.strip() for row in rows for cell in row)
        assert _words(" ".join(rows[-1])) <= _words(plain.out)
    # What stands below the tables is not lost.
    words = tsv.err.split()
    rest = [
        line for line in plain.out.splitlines() if line.startswith(("warning", "policy", "assumed"))
    ]
    assert all(word in words for line in rest for word in line.split())
    assert bool(rest) == (name == "cost")


def _words(text: str) -> set[str]:
    return {*text.replace("[", " ").replace("]", " ").split()}


def test_a_style_that_is_none_and_what_is_no_table_are_told() -> None:
    for arguments, message in (
        (("recipes", "--table", "csv"), "unknown style 'csv'\n  fix: use one of: plain, github"),
        (("recipes", "--table", "tsv", "--json"), "--json prints no table"),
        (("recipes", "nvfp4", "--table", "tsv"), "the page of a recipe is no table"),
        (("inspect", "x", "--graph", "--table", "tsv"), "--graph prints no table"),
        (("inspect", "x", "--layer", "y", "--table", "tsv"), "--graph prints no table"),
        (("convert", "x", "--table", "word"), "unknown style 'word'"),
        (("cost", "x", "--table", "word"), "unknown style 'word'"),
        (("bench", "--table", "word"), "unknown style 'word'"),
    ):
        result = run(*arguments)
        assert result.code == 1
        assert message in result.err


def test_bench_prints_its_table_alone(capsys: pytest.CaptureFixture[str]) -> None:
    side = {"first_call_s": 2.0, "median_step_s": 0.01, "peak_memory_bytes": 2**20}
    ratios = {"first_call": 1.25, "step": 1.1, "peak_memory": 1.0}
    result = {
        "model": "preset:bench-llama,layers=64", "policy": "nvfp4", "tokens": 64, "device": "cpu",
        "qgraph": side, "ratios": ratios, "products": 50, "pass_s": 0.1,
    }  # fmt: skip
    _print_many([result, result], "tsv")
    out, err = capsys.readouterr()
    first, *rows = [line.split("\t") for line in out.splitlines()]
    assert first[1:4] == ["sites", "first call", "passes"]
    assert rows == [["layers=64", "50", "2 s", "100 ms", "2.0 ms", "1.25", "1.10", "1.00"]] * 2
    assert "preset:bench-llama, nvfp4, 64 tokens, cpu" in err
    assert "/: over plain Inductor" in err
