"""qgraph formats: the list of formats and words, and one format's limits, values and plot."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import matplotlib.image
import pytest
import torch

from qgraph.formats import (
    ELEMENTS,
    ROUNDINGS,
    SCALE_ROUNDINGS,
    Codebook,
    Dialect,
    FloatFormat,
    find_element,
    make_range,
    make_scale,
    parse_format,
    parse_gradient,
)
from qgraph.formats.gradient import Estimator
from qgraph.formats.scale import RangeKind
from qgraph.numerics import decode, round_to
from tests.tools.command import run

OTHERS = (
    "e3m4+b5", "e4m3+b7.5", "e4m3+fnuz", "e5m2+flush+overflow", "e2m0+ieee", "ue5m2+ieee", "e4m3+fnuz+flush",
    "int5", "int8+full", "int6+asymmetric", "fixed2.6", "log4", "power4+a0.5", "list(-4,0.25,1)",
)  # fmt: skip


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read_json(*arguments: str) -> Any:
    result = run("formats", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out, parse_constant=refuse)


def lines_of(*arguments: str) -> dict[str, str]:
    """Return what is printed of a format, label by label."""
    result = run("formats", *arguments)
    assert result.code == 0, result.err
    rows = (line.split("  ", 1) for line in result.out.splitlines())
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}


def test_the_list_names_every_element_with_its_limits() -> None:
    rows = {
        words[0]: words[1:]
        for line in run("formats").out.split("\n\n")[0].splitlines()[1:]
        if (words := line.split())
    }
    assert list(rows) == list(ELEMENTS)
    for name, fmt in ELEMENTS.items():
        bits, largest, smallest, normal, positive = rows[name][:5]
        assert int(bits) == fmt.bits
        assert float(largest) == pytest.approx(fmt.max, rel=0.005)
        assert float(smallest) == pytest.approx(fmt.min, rel=0.005)
        assert float(positive) == pytest.approx(fmt.min_positive, rel=0.005)
        if isinstance(fmt, FloatFormat):
            assert float(normal) == pytest.approx(fmt.min_normal, rel=0.005)
            assert int(rows[name][5]) == fmt.bias
        else:
            assert (normal, rows[name][5]) == ("-", "-")
    assert rows["e5m2"][6:] == ["6", "2"]  # codes of NaN, of infinity


def test_the_list_has_every_word_of_a_policy() -> None:
    shown, found = run("formats").out, read_json()
    assert found["roundings"] == ROUNDINGS
    assert found["scale_roundings"] == {key: list(words) for key, words in SCALE_ROUNDINGS.items()}
    assert [element["name"] for element in found["elements"]] == list(ELEMENTS)
    # What is listed can be read, and nothing that can be read is left out.
    assert {make_range(word).kind for word in found["ranges"]} == set(get_args(RangeKind))
    assert found["dialects"] == list(get_args(Dialect))
    for word in found["dialects"]:
        text = {"qutlass": "e2m1/1x16/e4m3", "torchao": "e4m3/tensor/fp32"}
        ranged = parse_format(f"{text.get(word, 'e2m1/1x16/e4m3/fp32')}@{word}")
        assert ranged.dialect == word
    estimators = [word for word in found["gradients"] if not word.startswith("+")]
    assert {parse_gradient(word).estimator for word in estimators} == set(get_args(Estimator))
    assert "+absmax" in found["gradients"]
    words = [*ROUNDINGS, *found["ranges"], *found["dialects"], *found["gradients"]]
    words += [word for legal in SCALE_ROUNDINGS.values() for word in legal]
    words += ["+fnuz", "+overflow", "+asymmetric", "powerN+a0.5", "fp32-row", "ue2m0 to ue8m0"]
    assert [word for word in words if word not in shown] == []
    assert {fmt.source for fmt in ELEMENTS.values() if fmt.source not in shown} == set()


@pytest.mark.parametrize("name", [*ELEMENTS, *OTHERS])
def test_limits_are_those_of_the_format(name: str) -> None:
    fmt, shown = find_element(name), lines_of(name)

    def number(label: str) -> float:
        return float(shown[label].split(" = ")[0])

    assert shown["name"] == fmt.name
    assert int(shown["bits"]) == fmt.bits
    largest = "largest magnitude" if isinstance(fmt, Codebook) else "largest"
    assert number(largest) == pytest.approx(fmt.max, rel=1e-8)
    assert number("smallest") == pytest.approx(fmt.min, rel=1e-8)
    assert number("smallest above zero") == pytest.approx(fmt.min_positive, rel=1e-8)
    assert shown["exponents"].endswith(f" to {fmt.max_exponent}")
    if isinstance(fmt, FloatFormat):
        assert number("smallest normal") == pytest.approx(fmt.min_normal, rel=1e-8)
        assert number("unit") == pytest.approx(fmt.unit, rel=1e-8)
        assert number("bias") == (fmt.bias if fmt.offset is None else fmt.offset)
        assert int(shown["steps per binade"]) == 2**fmt.mantissa_bits
        assert shown["exponents"] == f"{fmt.min_exponent} to {fmt.max_exponent}"
        assert (shown["beyond the largest"] == "saturates") == fmt.saturate
    # The counts, against the codes themselves: what rounding keeps is a value.
    values = decode(torch.arange(1 << fmt.bits, dtype=torch.int32), fmt)
    kept = values[(values.abs() < math.inf) & (round_to(values, fmt) == values)]
    assert int(shown["distinct values"]) == kept.unique().numel()
    assert int(shown["NaN codes"]) == int(values.isnan().sum())
    assert int(shown["infinity codes"]) == int(values.isinf().sum())


def test_a_block_format_shows_its_parts() -> None:
    shown = lines_of("e2m1/1x16/e4m3:4over6/fp32")
    assert (shown["bits per element"], shown["largest over smallest"]) == ("4.5", "12")
    assert (shown["block shape"], shown["block along"]) == ("1x16", "16")
    assert (shown["scale range"], shown["scale largest"]) == ("4over6", "448")
    assert (shown["tensor scale"], shown["dialect"]) == ("fp32", "te")
    assert shown["element largest"] == "6"
    found = read_json("e4m3/1x32/ue8m0-floor")
    assert found["scale"]["rounding"] == "floor"
    assert (found["scale"]["max"], found["scale"]["min_positive"]) == (2.0**127, 2.0**-127)
    assert found["largest_over_smallest"] == 448 * 2**9
    assert found["element"] == read_json("e4m3")
    assert read_json("int8+asymmetric/row/fp32")["largest_over_smallest"] == 255
    assert read_json("int8+full/row/fp32")["largest_over_smallest"] == 128
    assert read_json("list(-4,0,1)/row/fp32")["largest_over_smallest"] == 4
    assert read_json("list(-0.25,0,1)/row/fp32")["largest_over_smallest"] == 4
    assert read_json("e8m3/tensor/none")["scale"]["max"] is None
    assert read_json("int8/row/fp32")["scale"]["max"] == torch.finfo(torch.float32).max
    small = make_scale("ue4m0")
    assert read_json(f"e2m1/1x16/{small}")["scale"]["max"] == 2.0**7


def cells(name: str) -> list[list[str]]:
    """Return what --values prints: hex, binary and value of each code."""
    shown = run("formats", name, "--values").out.split("\n\n", 1)[1].splitlines()[1:]
    words = " ".join(shown).split()
    return [words[n : n + 3] for n in range(0, len(words), 3)]


def test_values_of_e2m1_are_its_16_codes() -> None:
    found = cells("e2m1")
    positive = ["0", "0.5", "1", "1.5", "2", "3", "4", "6"]
    assert [value for *_, value in found] == positive + [f"-{value}" for value in positive]
    assert [code for code, *_ in found] == [f"0x{n:x}" for n in range(16)]
    assert [code for _, code, _ in found] == [f"{n:04b}" for n in range(16)]


def test_values_show_what_is_no_number_and_what_is_never_written() -> None:
    found = cells("e4m3")
    assert [int(code, 16) for code, *_ in found] == [int(code, 2) for _, code, _ in found]
    assert [int(code, 16) for code, *_ in found] == list(range(256))
    assert [code for code, _, value in found if value == "nan"] == ["0x7f", "0xff"]
    assert found[0x7E] == ["0x7e", "01111110", "448"]
    assert found[0x81][2] == "-0.001953125"
    assert [value for *_, value in cells("ternary")] == ["-1", "0", "1", "unused"]
    assert cells("int8")[0x7F:0x82] == [
        ["0x7f", "01111111", "127"], ["0x80", "10000000", "unused"], ["0x81", "10000001", "-127"],
    ]  # fmt: skip
    assert cells("int8+full")[0x80][2] == "-128"


def test_values_of_a_wide_format_are_its_ends() -> None:
    found = [(int(code, 16), float(value)) for code, _, value in cells("fp16")]
    assert (
        "63487 values; the lowest 16 and the highest 16:" in run("formats", "fp16", "--values").out
    )
    assert len(found) == 32
    assert (found[0], found[-1]) == ((0xFBFF, -65504.0), (0x7BFF, 65504.0))
    assert [value for _, value in found] == sorted(value for _, value in found)
    assert all(decode(torch.tensor([code]), find_element("fp16")) == v for code, v in found)


def test_json_has_no_bare_nan() -> None:
    found = read_json("e5m2", "--values")
    assert len(found["grid"]) == 256
    assert found["grid"][0x7B:0x7E] == [[0x7B, 57344.0], [0x7C, "inf"], [0x7D, "nan"]]
    assert (found["max"], found["min_normal"], found["bias"]) == (57344.0, 2.0**-14, 15)
    assert read_json("nf4")["bias"] is None
    assert read_json("ternary", "--values")["grid"][3] == [3, None]


@pytest.mark.parametrize(
    "name", ["e4m3", "bf16", "list(-4,1)", "ue5m3+overflow", "e2m1/1x16/e4m3/fp32"]
)
def test_the_plot_is_a_picture(name: str, tmp_path: Path) -> None:
    result = run("formats", name, "--plot", str(tmp_path / "it.png"))
    assert result.code == 0, result.err
    assert f"wrote {tmp_path / 'it.png'}" in result.out
    assert (tmp_path / "it.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = matplotlib.image.imread(tmp_path / "it.png")[..., :3]
    assert picture.shape[0] > 500
    blue = picture[..., 2] - picture[..., 0] > 0.2  # what data is drawn in
    third = picture.shape[0] // 3
    for part, drawn in ((slice(0, third), 200), (slice(third + 60, None), 1500)):
        assert picture[part].var() > 0.005
        assert blue[part].sum() > drawn


PLOTS = {
    "no/such/folder/it.png": "no such folder",
    "it.pdf": "does not end in .png",
    "folder.png": "is a directory",
}


@pytest.mark.parametrize("file", PLOTS)
def test_a_plot_that_cannot_be_written_is_told_before_work_starts(
    file: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = run("formats", "e4m3", "--plot", str(tmp_path / file))
    assert result.code == 1
    assert f"error: {tmp_path / file}: cannot write the plot: " in result.err
    assert PLOTS[file] in result.err
    assert "\n  fix: " in result.err
    assert "loading torch" not in result.err
    assert result.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


WRONG = {
    "e2m9x": ("unknown element format 'e2m9x'", "did you mean 'e2m3'?"),
    "int40": ("'int40' is out of range", "write int2 to int16"),
    "e2m1/1x16/e4m12": ("unknown scale 'e4m12'", "use one of: fp32, none, ue8m0"),
    "e2m1/1x16": ("unknown format 'e2m1/1x16'", "write element/block/scale"),
    "e2m1/1x16/e4m3@tee": ("unknown dialect 'tee'", "use one of: te, torchao_ptq"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_told(name: str) -> None:
    result = run("formats", name, "--values")
    assert (result.code, result.out) == (1, "")
    problem, fix = WRONG[name]
    assert f"error: {problem}" in result.err
    assert f"\n  fix: {fix}" in result.err
    assert "Traceback" not in result.err


def test_values_need_a_name() -> None:
    for option in (("--values",), ("--plot", "it.png")):
        result = run("formats", *option)
        assert (result.code, result.out) == (1, "")
        assert "fix: write qgraph formats e4m3" in result.err


@pytest.mark.parametrize(
    "arguments",
    [(), ("e4m3",), ("e4m3+b7.5", "--values"), ("bf16", "--values"), ("nf4/16x16/fp32",), ("--help",)],
)  # fmt: skip
def test_lines_fit_80_columns(arguments: tuple[str, ...]) -> None:
    lines = run("formats", *arguments).out.splitlines()
    assert len(lines) > 15
    assert [line for line in lines if len(line) > 80] == []


def test_help_has_an_example_that_works() -> None:
    shown = " ".join(run("formats", "--help").out.split())
    example = "e2m1/1x16/e4m3/fp32 --plot fp4.png"
    assert f"qgraph formats {example}" in shown
    assert run("formats", example.split()[0]).code == 0


def test_the_list_and_the_limits_do_not_load_torch() -> None:
    code = (
        "import sys; from qgraph.tools.main import app\n"
        "for name in ([], ['e4m3'], ['e2m1/1x16/e4m3/fp32', '--json']):\n"
        "    app(['formats', *name], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bits per element" not in done.stdout  # the last was JSON
    assert "bits_per_element" in done.stdout
