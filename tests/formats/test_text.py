"""The text form of block formats: what it reads, what it prints, what it refuses."""

import dataclasses
import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.errors import FormatError, QGraphError
from qgraph.formats import (
    ELEMENTS,
    Block,
    BlockFormat,
    check_format,
    find_element,
    make_block,
    parse_format,
)
from qgraph.formats.block import SCALES

BLOCKS = ("tensor", "row", "1x16", "16x16", "1x32", "1x2", "1024x1024", "3x7")
ALL_ELEMENTS = "e4m3, e5m2, e2m1, e2m3, e3m2, int8, int4"

ONE_LEVEL = [
    "/".join(parts)
    for parts in itertools.product(ELEMENTS, BLOCKS, ("ue8m0-rceil", "ue8m0-floor", "fp32"))
]
TWO_LEVEL = [
    f"{name}/{block}/e4m3/fp32"
    for name in ELEMENTS
    if not name.startswith("int")
    for block in BLOCKS
    if "x" in block
]


@pytest.mark.parametrize("text", [*ONE_LEVEL, *TWO_LEVEL])
def test_the_text_form_reads_back(text: str) -> None:
    fmt = parse_format(text)
    assert str(fmt) == text
    assert parse_format(str(fmt)) == fmt


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 1024), st.integers(2, 1024))
def test_every_tile_reads_back(across: int, along: int) -> None:
    assert make_block(f"{across}x{along}") == Block(across=across, along=along)
    assert str(Block(across=across, along=along)) == f"{across}x{along}"


def test_nvfp4_is_what_its_text_says() -> None:
    assert parse_format("e2m1/1x16/e4m3/fp32") == BlockFormat(
        element=find_element("e2m1"),
        block=Block(across=1, along=16),
        scale="e4m3",
        tensor_scale=True,
    )


def test_whole_axes_are_none() -> None:
    assert make_block("tensor") == Block(across=None, along=None)
    assert make_block("row") == Block(across=1, along=None)


def test_equal_texts_give_equal_formats_that_hash_alike() -> None:
    formats = [parse_format(text) for text in (*ONE_LEVEL, *TWO_LEVEL)]
    assert len(set(formats)) == len(formats)
    assert {f: str(f) for f in formats} == {parse_format(str(f)): str(f) for f in formats}


def test_formats_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_format("int8/row/fp32").scale = "e4m3"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("e2m1/1x16/e4m3/fp32", 4.5),
        ("e2m1/16x16/e4m3/fp32", 4 + 8 / 256),
        ("e4m3/1x32/ue8m0-rceil", 8.25),
        ("int4/1x64/fp32", 4.5),
        ("e2m3/row/ue8m0-floor", 6.0),
        ("int8/row/fp32", 8.0),
        ("e5m2/tensor/fp32", 8.0),
    ],
)
def test_storage_counts_codes_and_block_scales(text: str, bits: float) -> None:
    assert parse_format(text).bits_per_element == bits


PAIR = "write scale: e4m3 with tensor_scale: fp32, or another scale and no tensor_scale"
TILE = "write block: [1, 16] and an element such as e2m1"
SHAPE = "write element/block/scale, as in e2m1/1x16/e4m3/fp32"
MESSAGES = {
    "e2m1": ("unknown format 'e2m1'", SHAPE),
    "": ("unknown format ''", SHAPE),
    "e2m1/1x16/e4m3/fp32/fp32": ("unknown format 'e2m1/1x16/e4m3/fp32/fp32'", SHAPE),
    "e2m1/1x16/e8m0": ("unknown scale 'e8m0'", "use one of: e4m3, ue8m0-rceil, ue8m0-floor, fp32"),
    "e2m1/1x16/e4m3/bf16": ("unknown tensor scale 'bf16'", "write fp32 or leave it out"),
    "e2m1/1x16/e4m3/": ("unknown tensor scale ''", "write fp32 or leave it out"),
    "e4m3fn/1x16/fp32": ("unknown element format 'e4m3fn'", "did you mean 'e4m3'?"),
    "posit/1x16/fp32": ("unknown element format 'posit'", f"use one of: {ALL_ELEMENTS}"),
    "e2m1/16/fp32": ("unknown block '16'", "write tensor, row, or a tile such as 1x16"),
    "e2m1/-1x16/fp32": ("unknown block '-1x16'", "write tensor, row, or a tile such as 1x16"),
    "e2m1/0x16/fp32": (
        "block '0x16' is out of range",
        "write 1 to 1024 by 2 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x1/fp32": (
        "block '1x1' is out of range",
        "write 1 to 1024 by 2 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x1025/fp32": (
        "block '1x1025' is out of range",
        "write 1 to 1024 by 2 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x16/e4m3": (
        "'e2m1/1x16/e4m3': an e4m3 block scale and a tensor scale go together",
        PAIR,
    ),
    "e2m1/1x16/fp32/fp32": (
        "'e2m1/1x16/fp32/fp32': an e4m3 block scale and a tensor scale go together",
        PAIR,
    ),
    "int8/1x16/e4m3/fp32": (
        "'int8/1x16/e4m3/fp32': two-level scales need a floating-point element and a tile",
        TILE,
    ),
    "e2m1/row/e4m3/fp32": (
        "'e2m1/row/e4m3/fp32': two-level scales need a floating-point element and a tile",
        TILE,
    ),
    "e2m1/tensor/e4m3/fp32": (
        "'e2m1/tensor/e4m3/fp32': two-level scales need a floating-point element and a tile",
        TILE,
    ),
}


@pytest.mark.parametrize("text", MESSAGES)
def test_a_refusal_names_the_part_and_the_fix(text: str) -> None:
    problem, fix = MESSAGES[text]
    with pytest.raises(FormatError) as caught:
        parse_format(text)
    assert str(caught.value) == f"{problem}\n  fix: {fix}"


def test_a_format_error_is_a_value_error_and_ours() -> None:
    assert issubclass(FormatError, ValueError)
    assert issubclass(FormatError, QGraphError)


def test_check_format_returns_what_fits() -> None:
    fmt = parse_format("int8/row/fp32")
    assert check_format(fmt) is fmt


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="e2m1x6/fp34ue8-rcilnt", max_size=24))
def test_any_text_is_read_or_refused_with_our_error(text: str) -> None:
    said = ""
    try:
        said = str(parse_format(str(parse_format(text))))
    except FormatError as error:
        said = str(error)
    assert "\n  fix: " in said or said.count("/") >= 2


def test_all_scales_are_reachable_from_text() -> None:
    seen = {parse_format(text).scale for text in (*ONE_LEVEL, *TWO_LEVEL)}
    assert seen == set(SCALES)


def test_formats_do_not_import_torch() -> None:
    code = "import sys, qgraph.formats; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
