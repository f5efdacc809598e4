"""Rounding to nearest, and codes: against ml_dtypes, torch and gfloat, exhaustively and by law."""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as oracle
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qgraph.formats import E2M1, E4M3, E5M2, ELEMENTS, Element, FloatFormat
from qgraph.numerics import decode, encode, round_to
from tests.numerics.data import PLAIN, every_exponent, law, same_bits
from tests.numerics.reference import DTYPES, grid, to_grid

FLOATS = [f for f in PLAIN if isinstance(f, FloatFormat)]
GFLOAT = {
    "e4m3": oracle.format_info_ocp_e4m3,
    "e5m2": oracle.format_info_ocp_e5m2,
    "e2m1": oracle.format_info_ocp_e2m1,
    "e2m3": oracle.format_info_ocp_e2m3,
    "e3m2": oracle.format_info_ocp_e3m2,
}
each_float = pytest.mark.parametrize("fmt", FLOATS, ids=lambda f: f.name)
each_element = pytest.mark.parametrize("fmt", PLAIN, ids=lambda f: f.name)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.floats(-500, 500, width=32)


def all_codes(fmt: Element) -> Tensor:
    return torch.arange(2**fmt.bits, dtype=torch.int32).to(torch.uint8)


def cast(x: Tensor, fmt: FloatFormat) -> Tensor:
    """Cast with ml_dtypes; what is out of range is clamped first, as casts there overflow."""
    clamped = x.clamp(-fmt.max, fmt.max).numpy()
    return torch.from_numpy(clamped.astype(DTYPES[fmt.name]).astype(np.float32))


def around_midpoints(fmt: Element) -> Tensor:
    """Return every midpoint of two neighbors, one ulp and 1e-3 to each side, and the values, signed."""
    values = torch.from_numpy(grid(fmt.name))
    middles = ((values[1:] + values[:-1]) / 2).float()
    points = torch.cat([middles, values.float(), torch.tensor([fmt.max * 1.01, fmt.max * 1.2])])
    zero, top = torch.zeros(()), torch.tensor(torch.inf)
    moved = [
        torch.nextafter(points, zero),
        torch.nextafter(points, top),
        points - 1e-3,
        points + 1e-3,
    ]
    scaled = [points * (1 - 1e-3), points * (1 + 1e-3)]
    found = torch.cat([points, *moved, *scaled])
    return torch.cat([found, -found])


@each_float
def test_decode_agrees_with_ml_dtypes_on_every_code(fmt: FloatFormat) -> None:
    codes = all_codes(fmt)
    want = torch.from_numpy(codes.numpy().view(DTYPES[fmt.name]).astype(np.float32))
    assert same_bits(decode(codes, fmt), want)


@each_element
def test_every_code_of_a_number_encodes_back_to_itself(fmt: Element) -> None:
    codes = all_codes(fmt)
    values = decode(codes, fmt)
    numbers = ~values.isnan()
    assert torch.equal(encode(values[numbers], fmt), codes[numbers])


@each_element
def test_every_value_of_the_grid_stays_where_it_is(fmt: Element) -> None:
    values = decode(all_codes(fmt), fmt)
    values = values[values.abs() <= fmt.max]
    assert same_bits(round_to(values, fmt), values)


def test_the_number_of_codes_that_are_no_numbers_follows_from_the_standard() -> None:
    counts = {f.name: int((~decode(all_codes(f), f).isfinite()).sum()) for f in PLAIN}
    assert counts == {"e4m3": 2, "e5m2": 8, "e2m1": 0, "e2m3": 0, "e3m2": 0, "int8": 0, "int4": 0}


@pytest.mark.parametrize(
    ("x", "want"),
    [
        (0.25, 0.0),
        (0.75, 1.0),
        (1.25, 1.0),
        (1.75, 2.0),
        (2.5, 2.0),
        (3.5, 4.0),
        (5.0, 4.0),
        (6.0, 6.0),
        (7.0, 6.0),
        (1e38, 6.0),
        (torch.inf, 6.0),
    ],
)
def test_ties_of_e2m1_go_to_the_even_code(x: float, want: float) -> None:
    assert round_to(torch.tensor([x, -x]), E2M1).tolist() == [want, -want]


@pytest.mark.parametrize(
    ("x", "want"),
    [
        (0.5, 0.0),
        (1.5, 2.0),
        (2.5, 2.0),
        (126.5, 126.0),
        (127.4, 127.0),
        (127.5, 127.0),
        (1e9, 127.0),
    ],
)
def test_ties_of_int8_go_to_the_even_integer_and_the_range_is_symmetric(
    x: float, want: float
) -> None:
    assert round_to(torch.tensor([x, -x]), ELEMENTS["int8"]).tolist() == [want, -want]


@each_float
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_agrees_with_ml_dtypes_on_every_16_bit_number(fmt: FloatFormat, dtype: torch.dtype) -> None:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).float()
    x = x[~x.isnan()]
    assert same_bits(round_to(x, fmt), cast(x, fmt))


@pytest.mark.parametrize(("fmt", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)])
def test_agrees_with_torch_on_every_float16(fmt: FloatFormat, dtype: torch.dtype) -> None:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16).float()
    x = x[x.isfinite() & (x.abs() <= fmt.max)]
    assert same_bits(round_to(x, fmt), x.to(dtype).float())


@each_float
def test_agrees_with_ml_dtypes_around_every_midpoint(fmt: FloatFormat) -> None:
    x = around_midpoints(fmt)
    assert same_bits(round_to(x, fmt), cast(x, fmt))


@each_float
def test_agrees_with_gfloat_around_every_midpoint(fmt: FloatFormat) -> None:
    x = around_midpoints(fmt)
    want = gfloat.round_ndarray(GFLOAT[fmt.name], x.double().numpy(), sat=True)
    assert same_bits(round_to(x, fmt), torch.from_numpy(np.asarray(want)).float())


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integers_agree_with_rounding_by_lookup(name: str) -> None:
    x = torch.cat([around_midpoints(ELEMENTS[name]), every_exponent()])
    want = torch.from_numpy(to_grid(x.numpy(), name))
    assert same_bits(round_to(x, ELEMENTS[name]), want)


@each_float
def test_agrees_with_ml_dtypes_one_ulp_around_every_power_of_two(fmt: FloatFormat) -> None:
    limits = every_exponent()
    x = torch.cat([limits, torch.nextafter(limits, torch.tensor(torch.inf)), -limits])
    x = x[x.isfinite()]
    assert same_bits(round_to(x, fmt), cast(x, fmt))


@each_element
def test_zeros_keep_their_sign_and_small_numbers_become_signed_zeros(fmt: Element) -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39])
    zeros = torch.tensor([0.0, -0.0] * 3)
    assert same_bits(round_to(x, fmt), zeros)


@each_element
def test_infinities_saturate_and_nan_stays(fmt: Element) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert same_bits(round_to(x, fmt), torch.tensor([fmt.max, -fmt.max, torch.nan]))


@each_float
def test_a_negative_zero_has_a_code_of_its_own(fmt: FloatFormat) -> None:
    assert encode(torch.tensor([0.0, -0.0]), fmt).tolist() == [0, 1 << (fmt.bits - 1)]


def test_integers_are_stored_in_twos_complement() -> None:
    assert encode(torch.tensor([-1.0, -127.0, 127.0, -0.0]), ELEMENTS["int8"]).tolist() == [
        255,
        129,
        127,
        0,
    ]
    assert encode(torch.tensor([-1.0, -7.0, 7.0, 0.0]), ELEMENTS["int4"]).tolist() == [15, 9, 7, 0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1)])
def test_any_shape_is_taken(shape: tuple[int, ...]) -> None:
    assert round_to(torch.ones(shape), E2M1).shape == shape


@each_element
@law
@given(x=finite | near)
def test_rounding_twice_changes_nothing(fmt: Element, x: float) -> None:
    once = round_to(torch.tensor(x), fmt)
    assert same_bits(round_to(once, fmt), once)


@each_element
@law
@given(a=finite | near, b=finite | near)
def test_rounding_keeps_order(fmt: Element, a: float, b: float) -> None:
    low, high = round_to(torch.tensor(sorted((a, b)), dtype=torch.float32), fmt)
    assert low <= high


@each_element
@law
@given(x=finite | near)
def test_rounding_is_odd(fmt: Element, x: float) -> None:
    assert same_bits(round_to(torch.tensor(-x), fmt), -round_to(torch.tensor(x), fmt))


@each_element
@law
@given(x=finite | near)
def test_no_value_of_the_grid_is_nearer_than_the_one_chosen(fmt: Element, x: float) -> None:
    chosen = float(round_to(torch.tensor(x), fmt))
    distance = np.abs(grid(fmt.name) - abs(x)).min()
    assert abs(chosen - x) == distance


def test_ml_dtypes_and_the_catalog_name_the_same_widths() -> None:
    widths = [ml_dtypes.finfo(DTYPES[f.name]).bits for f in FLOATS]  # type: ignore[no-untyped-call]
    assert widths == [f.bits for f in FLOATS]
