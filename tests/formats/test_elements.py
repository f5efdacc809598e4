"""Limits of the element formats: against their standards, ml_dtypes and gfloat."""

from dataclasses import replace

import ml_dtypes
import pytest
from gfloat import formats as oracle

from qgraph.formats import ELEMENTS, Element, FloatFormat, IntFormat, find_element

# max, smallest normal, smallest subnormal. OFP8 1.0 table 1; OCP MX 1.0 section 5.3.
FLOATS = {
    "e4m3": (448.0, 2.0**-6, 2.0**-9),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16),
    "e2m1": (6.0, 1.0, 0.5),
    "e2m3": (7.5, 1.0, 0.125),
    "e3m2": (28.0, 0.25, 0.0625),
    "e1m2": (1.75, 1.0, 0.25),
    "e3m0": (16.0, 0.25, 0.25),
    "ue5m3": (114688.0, 2.0**-14, 2.0**-17),
    "ue4m3": (448.0, 2.0**-6, 2.0**-9),
    "bf16": ((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133),
    "fp16": (65504.0, 2.0**-14, 2.0**-24),
    "tf32": ((2 - 2.0**-10) * 2.0**127, 2.0**-126, 2.0**-136),
}
OTHERS = {
    # max, min, smallest above zero, bits
    "int8": (127.0, -127.0, 1.0, 8),
    "int4": (7.0, -7.0, 1.0, 4),
    "nf4": (1.0, -1.0, 0.07958029955625534, 4),
    "ternary": (1.0, -1.0, 1.0, 2),
    "binary": (1.0, -1.0, 1.0, 1),
    "int2": (1.0, -1.0, 1.0, 2),
    "int16": (32767.0, -32767.0, 1.0, 16),
    "int8+full": (127.0, -128.0, 1.0, 8),
    "int8+asymmetric": (127.0, -128.0, 1.0, 8),
    "fixed4.4": (7.9375, -8.0, 0.0625, 8),
    "log4": (1.0, -1.0, 2.0**-6, 4),
    "power4+a0.5": (1.0, -1.0, 0.020408162847161293, 4),
    "list(-3,0.5,2)": (3.0, -3.0, 0.5, 2),
    "ue5m3+ieee": (61440.0, 0.0, 2.0**-17, 8),
    "e4m3+b8+fnuz": (240.0, -240.0, 2.0**-10, 8),
    "e5m2+b16+fnuz": (57344.0, -57344.0, 2.0**-17, 8),
    "e4m3+ieee": (240.0, -240.0, 2.0**-9, 8),
    "e3m4": (31.0, -31.0, 2.0**-6, 8),
    "e2m1+flush": (6.0, -6.0, 1.0, 4),
    "e1m0": (1.0, -1.0, 1.0, 2),
}
ML_DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e3m4+ieee": ml_dtypes.float8_e3m4,
    "e4m3+ieee": ml_dtypes.float8_e4m3,
    "e4m3+b8+fnuz": ml_dtypes.float8_e4m3fnuz,
    "e4m3+b11+fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e5m2+b16+fnuz": ml_dtypes.float8_e5m2fnuz,
    "bf16": ml_dtypes.bfloat16,
}
GFLOAT = {
    "e4m3": oracle.format_info_ocp_e4m3,
    "e5m2": oracle.format_info_ocp_e5m2,
    "e2m1": oracle.format_info_ocp_e2m1,
    "e2m3": oracle.format_info_ocp_e2m3,
    "e3m2": oracle.format_info_ocp_e3m2,
}


def float_format(name: str) -> FloatFormat:
    fmt = find_element(name)
    assert isinstance(fmt, FloatFormat)
    return fmt


def test_every_element_of_the_catalog_has_its_limits_in_this_file() -> None:
    assert set(ELEMENTS) <= {*FLOATS, *OTHERS}


def test_the_catalog_files_each_element_under_its_own_name() -> None:
    assert all(fmt.name == name for name, fmt in ELEMENTS.items())


@pytest.mark.parametrize("name", FLOATS)
def test_derived_limits_are_those_of_the_standard(name: str) -> None:
    fmt = float_format(name)
    assert (fmt.max, fmt.min_normal, fmt.min_positive) == FLOATS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_limits_of_integers_codebooks_and_unusual_floats(name: str) -> None:
    fmt = find_element(name)
    assert (fmt.max, fmt.min, fmt.min_positive, fmt.bits) == OTHERS[name]


@pytest.mark.parametrize("name", ML_DTYPES)
def test_derived_limits_agree_with_ml_dtypes(name: str) -> None:
    fmt, info = float_format(name), ml_dtypes.finfo(ML_DTYPES[name])  # type: ignore[no-untyped-call]
    assert fmt.max == float(info.max)
    assert fmt.min_normal == float(info.smallest_normal)
    assert fmt.min_positive == float(info.smallest_subnormal)
    assert fmt.bits == info.bits


@pytest.mark.parametrize("name", GFLOAT)
def test_derived_limits_agree_with_gfloat(name: str) -> None:
    fmt, info = float_format(name), GFLOAT[name]
    assert (fmt.bits, fmt.bias) == (info.k, info.bias)
    assert (fmt.max, fmt.max_exponent) == (info.max, info.emax)
    assert (fmt.min_normal, fmt.min_positive) == (info.smallest_normal, info.smallest_subnormal)


@pytest.mark.parametrize("name", FLOATS)
def test_the_largest_value_lies_in_the_binade_of_the_largest_exponent(name: str) -> None:
    fmt = float_format(name)
    assert 2.0**fmt.max_exponent <= fmt.max < 2.0 ** (fmt.max_exponent + 1)
    assert fmt.min_normal == 2.0**fmt.min_exponent


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "bias", "largest", "min_normal"),
    [(3, 0, 3, 16.0, 0.25), (2, 0, 1, 4.0, 1.0), (4, 0, 7, 256.0, 2.0**-6)],
)
def test_limits_of_formats_outside_the_catalog_follow_from_the_fields(
    exponent_bits: int, mantissa_bits: int, bias: int, largest: float, min_normal: float
) -> None:
    fmt = FloatFormat(
        name="x",
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        specials="none",
        source="-",
    )
    assert (fmt.bias, fmt.max, fmt.min_normal) == (bias, largest, min_normal)


def test_reserved_codes_lower_the_largest_value() -> None:
    plain = FloatFormat(name="x", exponent_bits=4, mantissa_bits=3, specials="none", source="-")
    one_nan, ieee = replace(plain, specials="nan_only"), replace(plain, specials="ieee")
    assert [f.max for f in (plain, one_nan, ieee)] == [480.0, 448.0, 240.0]
    # Without a mantissa the one code given up is the whole top exponent.
    assert [replace(f, mantissa_bits=0).max for f in (plain, one_nan, ieee)] == [
        256.0,
        128.0,
        128.0,
    ]


@pytest.mark.parametrize(("name", "bits", "largest"), [("int8", 8, 127.0), ("int4", 4, 7.0)])
def test_integers_are_symmetric(name: str, bits: int, largest: float) -> None:
    fmt = ELEMENTS[name]
    assert isinstance(fmt, IntFormat)
    assert (fmt.bits, fmt.max) == (bits, largest)


@pytest.mark.parametrize("fmt", ELEMENTS.values(), ids=list(ELEMENTS))
def test_every_element_names_its_source(fmt: Element) -> None:
    assert len(fmt.source) > 10
