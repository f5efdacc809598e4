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
    Range,
    check_format,
    find_element,
    make_block,
    make_scale,
    parse_format,
)

BLOCKS = ("tensor", "row", "column", "1x16", "16x16", "1x32", "1x2", "2x1", "1024x1024", "3x7")
ALL_ELEMENTS = (
    "e4m3, e5m2, e2m1, e2m3, e3m2, e1m2, e3m0, ue5m3, ue4m3, bf16, fp16, tf32, int8, int4, nf4, "
    "ternary, binary; or eXmY such as e4m3, intN, fixedI.F, logN, powerN+a0.5, list(-1,0,1)"
)
OTHER_ELEMENTS = (
    "e3m4", "e4m3+b8+fnuz", "e4m3+ieee", "e5m3+ieee+flush+overflow", "e2m1+b1.5", "ue5m3+ieee", "e8m3",
    "int2", "int16", "int8+full", "int8+asymmetric", "fixed4.4", "log4", "power4+a0.5",
    "list(-1,0.25,2)",
)  # fmt: skip

ONE_LEVEL = [
    "/".join(parts)
    for parts in itertools.product(ELEMENTS, BLOCKS, ("ue8m0-rceil", "ue8m0-floor", "fp32"))
]
RICH = [
    *(f"{name}/1x16/fp32" for name in OTHER_ELEMENTS),
    "e8m3/tensor/none",
    "e2m1/1x16/e4m3",
    "e2m1/1x16/e4m3-up",
    "e2m1/1x16/ue5m3-stochastic:mse/fp32",
    "e2m1/1x16/ue5m3+ieee-down/fp32-row",
    "e2m1/1x16/e4m3:4over6/fp32",
    "int8/row/fp32:absmax+floor1e-5",
    "int8+asymmetric/1x32/fp32:absmax+floor0.01",
    "e4m3/row/fp32-pow2@torchao",
    "e2m1/1x32/ue8m0-even:rms",
    "e2m1/1x32/ue5m0-ceil",
    "int8/row/bf16:p99.9",
    "e4m3/tensor/fp32-pow2:fixed6",
    "e2m1/1x16/e4m3@torchao_ptq",
    "e2m1/1x16/e4m3/fp32@modelopt",
]
TWO_LEVEL = [
    f"{name}/{block}/e4m3/fp32"
    for name in ELEMENTS
    if name not in ("bf16", "tf32")  # 448 times their largest is beyond float32
    for block in BLOCKS
    if "x" in block
]


@pytest.mark.parametrize("text", [*ONE_LEVEL, *TWO_LEVEL, *RICH])
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
        scale=make_scale("e4m3", "nearest", Range(kind="absmax")),
        tensor_scale="fp32",
        dialect="te",
    )


def test_whole_axes_are_none() -> None:
    assert make_block("tensor") == Block(across=None, along=None)
    assert make_block("row") == Block(across=1, along=None)


def test_equal_texts_give_equal_formats_that_hash_alike() -> None:
    formats = [parse_format(text) for text in (*ONE_LEVEL, *TWO_LEVEL, *RICH)]
    assert len(set(formats)) == len(formats)
    assert {f: str(f) for f in formats} == {parse_format(str(f)): str(f) for f in formats}


def test_formats_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_format("int8/row/fp32").tensor_scale = "fp32"  # type: ignore[misc]


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


SHAPE = "write element/block/scale, as in e2m1/1x16/e4m3/fp32"
MESSAGES = {
    "e2m1": ("unknown format 'e2m1'", SHAPE),
    "": ("unknown format ''", SHAPE),
    "e2m1/1x16/e4m3/fp32/fp32": ("unknown format 'e2m1/1x16/e4m3/fp32/fp32'", SHAPE),
    "e2m1/1x16/int8": (
        "unknown scale 'int8'",
        "use one of: fp32, none, ue8m0 (or ueXm0), or a float such as e4m3 or ue5m3",
    ),
    "e2m1/1x16/ue9m0": ("unknown scale 'ue9m0'", "write ue2m0 to ue8m0"),
    "e2m1/1x16/e4m3/bf16": (
        "unknown tensor scale 'bf16'",
        "write fp32, fp32-row, or leave it out",
    ),
    "e2m1/1x16/e4m3/": ("unknown tensor scale ''", "write fp32, fp32-row, or leave it out"),
    "e2m1/1x16/e4m3/fp32@nvidia": (
        "unknown dialect 'nvidia'",
        "use one of: te, torchao_ptq, modelopt, quartet2, qutlass, torchao",
    ),
    "e2m1/1x16/fp32:p0": ("'p0' is no percentile", "write above 0 to 100, as in p99.9"),
    "e2m1/1x16/fp32:max": (
        "unknown range 'max'",
        "use one of: absmax, absmax+floor1e-5, p99.9, fixed6, mse, std, rms, 4over6, 4over6_mse, delayed16",
    ),
    "e4m3fn/1x16/fp32": ("unknown element format 'e4m3fn'", "did you mean 'e4m3'?"),
    "posit/1x16/fp32": ("unknown element format 'posit'", f"use one of: {ALL_ELEMENTS}"),
    "e2m1/16/fp32": ("unknown block '16'", "write tensor, row, column, or a tile such as 1x16"),
    "e2m1/-1x16/fp32": (
        "unknown block '-1x16'",
        "write tensor, row, column, or a tile such as 1x16",
    ),
    "e2m1/0x16/fp32": (
        "block '0x16' is out of range",
        "write 1 to 1024 by 1 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x1/fp32": (
        "block '1x1' is out of range",
        "write 1 to 1024 by 1 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x1025/fp32": (
        "block '1x1025' is out of range",
        "write 1 to 1024 by 1 to 1024 elements, as in 1x16",
    ),
    "e2m1/1x16/fp32/fp32": (
        "'e2m1/1x16/fp32/fp32': a tensor scale goes above block scales of few bits, and these are fp32",
        "write scale: e4m3, or leave tensor_scale out",
    ),
    "e2m1/row/e4m3/fp32": (
        "'e2m1/row/e4m3/fp32': a tensor scale goes above scales of tiles",
        "write block: [1, 16], or leave tensor_scale out",
    ),
    "e2m1/16x16/e4m3/fp32-row": (
        "'e2m1/16x16/e4m3/fp32-row': one tensor scale a row goes above blocks of one row",
        "write block: [1, 16], or tensor_scale: fp32",
    ),
    "bf16/1x16/e4m3/fp32": (
        "'bf16/1x16/e4m3/fp32': the tensor scale cannot hold bf16's largest value times e4m3's",
        "choose an element or a scale of fewer exponent bits",
    ),
    "e2m1/row/none": (
        "'e2m1/row/none': without a scale there is no block and no range",
        "write block: tensor and no range, or a scale",
    ),
    "int8+asymmetric/row/ue8m0": (
        "'int8+asymmetric/row/ue8m0-rceil': a zero point goes with an fp32 scale and the range absmax",
        "write scale: fp32, or a symmetric integer",
    ),
    "int8/row/fp32:absmax+floor0": (
        "'absmax+floor0' is no magnitude",
        "write above 0, as in absmax+floor1e-5",
    ),
    "int8/row/fp32:p99+floor1": (
        "unknown range 'p99+floor1'",
        "use one of: absmax, absmax+floor1e-5, p99.9, fixed6, mse, std, rms, 4over6, 4over6_mse, delayed16",
    ),
    "e4m3/row/fp32:absmax+floor1e-5": (
        "'e4m3/row/fp32:absmax+floor1e-5': a floor under the range goes with an integer and an fp32 scale",
        "write range: absmax",
    ),
    "int8/1x32/ue8m0-floor:absmax+floor1e-5": (
        (
            "'int8/1x32/ue8m0-floor:absmax+floor1e-5': a floor under the range goes with an integer and "
            "an fp32 scale"
        ),
        "write range: absmax",
    ),
    "int8/row/fp32@torchao": (
        "'int8/row/fp32@torchao': the dialect torchao speaks of e4m3 and e5m2, as torch has them",
        "write one of: e4m3, e5m2, e4m3+b8+fnuz, e5m2+b16+fnuz; or no dialect",
    ),
    "e4m3/1x32/ue8m0@torchao": (
        (
            "'e4m3/1x32/ue8m0-rceil@torchao': the dialect torchao has one fp32 scale, for a tensor or for "
            "each row"
        ),
        "write block: tensor, or row, and scale: fp32",
    ),
    "e4m3/tensor/fp32:p99@torchao": (
        "'e4m3/tensor/fp32:p99@torchao': the dialect torchao has no range 'p99'",
        "leave the range or the dialect out",
    ),
    "e2m1/1x16/e4m3@modelopt": (
        "'e2m1/1x16/e4m3@modelopt': the dialect modelopt has 2 levels of scales",
        "add tensor_scale: fp32",
    ),
    "ue8m0/row/fp32": (
        "'ue8m0' is a power of two: a scale, not an element",
        "write it as scale: ue8m0, and an element such as e4m3",
    ),
    "e0m0/row/fp32": ("'e0m0' has no exponent", "write int2, or eXmY with X from 1 to 8"),
    "e9m2/row/fp32": (
        "'e9m2' is too wide",
        "write eXmY with X from 1 to 8, Y from 0 to 10",
    ),
    "e1m2+ieee/row/fp32": (
        "'e1m2+ieee' has no normal number left",
        "write +finite instead of +ieee",
    ),
    "e2m1+overflow/row/fp32": (
        "'e2m1+overflow' has nothing to overflow to",
        "write +ieee or +fn, or no +overflow",
    ),
    "e4m3+b200/row/fp32": (
        "'e4m3+b200' has values that float32 cannot hold",
        "choose a bias that keeps all values between 2**-149 and 2**128",
    ),
    "e4m3+foo/row/fp32": (
        "'e4m3+foo': unknown option '+foo'",
        "use one of: +b8, +ieee, +fn, +fnuz, +finite, +flush, +overflow",
    ),
    "int17/row/fp32": ("'int17' is out of range", "write int2 to int16, or ternary, or binary"),
    "list(0,1)/row/fp32": (
        "'list(0,1)/row/fp32': it has no value below zero, and operands have",
        "list negative values too",
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


def test_formats_do_not_import_torch() -> None:
    code = "import sys, qgraph.formats; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
