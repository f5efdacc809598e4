"""How scales are chosen: golden bits of RCEIL, floor and the two-level rule, at every exponent."""

import gfloat
import numpy as np
import pytest
import torch
from gfloat import formats as oracle
from torch import Tensor

from qgraph.formats import E2M1, E4M3, ELEMENTS, Element, FloatFormat, make_scale
from qgraph.formats import parse_format as read
from qgraph.formats.rounding import NEAREST
from qgraph.numerics import REFERENCE, Kernels, fake_quant
from qgraph.numerics.scales import Scales, e8m0_value
from qgraph.numerics.scales import full_precision as full_precision_scales
from qgraph.numerics.scales import power_of_two as power_of_two_scales
from qgraph.numerics.scales import two_level as two_level_scales
from qgraph.ops.cpu.two_passes import CPU_STEPS
from tests.numerics.data import PLAIN, every_exponent, kinds, same_bits

FLT_MAX = float(np.finfo(np.float32).max)
INF = torch.tensor(torch.inf)
# Its largest value is a power of two, 16: the ratio amax/max is exact, so that tests can choose it.
UNIT = FloatFormat(name="unit", exponent_bits=3, mantissa_bits=0, specials="none", source="-")


def power_of_two(amax: Tensor, element: Element, *, ceil: bool) -> tuple[Tensor, Tensor]:
    scale = make_scale("ue8m0", "rceil" if ceil else "floor")
    found = power_of_two_scales(amax, element, scale)
    return found.decode, found.stored


def two_level(blocks: Tensor, amax: Tensor, element: Element) -> tuple[Tensor, Tensor, Tensor]:
    found = two_level_scales(blocks, amax, element, E4M3, NEAREST)
    assert found.tensor_scale is not None
    return found.encode, found.stored, found.tensor_scale


def full_precision(amax: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    found: Scales = full_precision_scales(amax, element, make_scale("fp32"))
    return found.encode, found.decode


def of_ratio(ratio: Tensor) -> tuple[Tensor, Tensor]:
    assert UNIT.max == 16.0
    return power_of_two(ratio * 16, UNIT, ceil=True)


def test_e8m0_bytes_are_powers_of_two() -> None:
    values = e8m0_value(torch.arange(256, dtype=torch.int32).to(torch.uint8))
    assert values[:255].double().tolist() == [2.0**e for e in range(-127, 128)]
    assert bool(values[255].isnan())


@pytest.mark.parametrize(
    ("ratio", "byte"),
    [
        (0.0, 0),
        (2.0**-131, 0),
        (2.0**-127, 0),
        (2.0**-127 + 2.0**-145, 1),
        (2.0**-126, 1),
        (2.0**-126 + 2.0**-145, 2),
        (0.999, 127),
        (1.0, 127),
        (1.0 + 2.0**-23, 128),
        (2.0**100, 227),
        (2.0**100 * (1 + 2.0**-23), 228),
        (2.0**123, 250),
    ],
)
def test_rceil_golden_bits(ratio: float, byte: int) -> None:
    scale, found = of_ratio(torch.tensor([ratio]))
    assert found.tolist() == [byte]
    assert scale.tolist() == [2.0 ** (byte - 127)]


def test_rceil_at_every_power_of_two_is_exact_and_rounds_up_one_ulp_above() -> None:
    powers = torch.tensor([2.0**k for k in range(-126, 123)])
    k = torch.arange(-126, 123) + 127
    above, below = torch.nextafter(powers, INF), torch.nextafter(powers, torch.zeros(()))
    assert torch.equal(of_ratio(powers)[1].long(), k)
    # Multiplying by 16 keeps these exact; next above a power, the byte is one higher.
    assert torch.equal(of_ratio(above)[1].long(), k + 1)
    assert torch.equal(of_ratio(below[1:])[1].long(), k[1:])


@pytest.mark.parametrize("element", PLAIN, ids=lambda f: f.name)
def test_rceil_is_the_smallest_power_of_two_not_below_the_ratio(element: Element) -> None:
    amax = every_exponent()
    scale, _ = power_of_two(amax, element, ceil=True)
    ratio = (amax.numpy() * (np.float32(1) / np.float32(element.max))).astype(np.float64)
    value = scale.double().numpy()
    assert bool((value >= ratio).all())
    assert bool(((value / 2 < ratio) | (value == 2.0**-127)).all())


@pytest.mark.parametrize("element", PLAIN, ids=lambda f: f.name)
def test_floor_is_the_largest_power_of_two_not_above(element: Element) -> None:
    amax = every_exponent()
    scale, _ = power_of_two(amax, element, ceil=False)
    top = 2.0 ** np.floor(np.log2(element.max))  # the largest power of two the element holds
    value = scale.double().numpy() * top
    exact = amax.double().numpy()
    assert bool(((value <= exact) | (scale.numpy() == 2.0**-127)).all())
    assert bool((value * 2 > exact).all())


@pytest.mark.parametrize("ceil", [True, False], ids=["rceil", "floor"])
@pytest.mark.parametrize(
    ("amax", "byte"), [(0.0, 0), (torch.nan, 255), (torch.inf, 255), (1e-45, 0)]
)
def test_edges_of_the_shared_exponent(amax: float, byte: int, *, ceil: bool) -> None:
    scale, found = power_of_two(torch.tensor([amax]), E4M3, ceil=ceil)
    assert found.tolist() == [byte]
    assert bool(scale.isnan()) == (byte == 255)


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("e2m1", oracle.format_info_ocp_e2m1),
        ("e2m3", oracle.format_info_ocp_e2m3),
        ("e3m2", oracle.format_info_ocp_e3m2),
        ("e4m3", oracle.format_info_ocp_e4m3),
    ],
)
@pytest.mark.parametrize(
    "kind",
    ["randn", "rows_exp8", "zero_block", "midpoints", "near_midpoints", "under_power_of_two"],
)
def test_ocp_floor_agrees_with_gfloat(name: str, info: gfloat.FormatInfo, kind: str) -> None:
    x = kinds(rows=12, columns=32)[kind]
    block = gfloat.BlockFormatInfo("mx", info, 32, oracle.format_info_ocp_e8m0)
    want = [
        gfloat.quantize_block(block, row.clip(-top, top), gfloat.compute_scale_amax)
        for row in x.double().numpy()
        if (top := largest(row, info)) is not None
    ]
    assert torch.equal(
        fake_quant(x, read(f"{name}/1x32/ue8m0-floor"), -1),
        torch.from_numpy(np.stack(want)).float(),
    )


def largest(
    row: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", info: gfloat.FormatInfo
) -> float:
    """Return the largest number the block can hold: gfloat turns a larger e4m3 into NaN."""
    return float(gfloat.compute_scale_amax(info.emax, row) * info.max)


def test_two_level_scales_of_a_known_tensor() -> None:
    blocks = torch.tensor([2688.0, 6.0, 6.0 * 2.0**-9, 6.0 * 2.0**-10, 6.0 * 2.0**-10 * 1.01, 0.0])
    encode, scale, tensor_scale = two_level(blocks, blocks.max(), E2M1)
    assert scale.tolist() == [
        448.0,
        1.0,
        2.0**-9,
        0.0,
        2.0**-9,
        0.0,
    ]  # no lower floor, a tie goes to 0
    assert encode.tolist()[1:] == [1.0, 512.0, FLT_MAX, 512.0, FLT_MAX]
    assert float(tensor_scale) == 1.0


def test_a_block_whose_scale_underflows_decodes_to_signed_zeros() -> None:
    x = torch.full((2, 16), 1e-4)
    x[0] = -x[0]
    x[0, 0] = -2688.0
    x = torch.cat([x, -x])
    rounded = fake_quant(x, read("e2m1/1x16/e4m3/fp32"), -1)
    assert torch.equal(rounded[1::2], torch.zeros(2, 16))
    assert torch.equal(rounded[1::2].signbit(), x[1::2].signbit())
    assert float(rounded[0, 0]) == -2688.0


def test_the_two_level_encode_scale_is_capped_and_a_zero_tensor_takes_one() -> None:
    tiny = torch.tensor([1e-38])
    encode, scale, tensor_scale = two_level(tiny, tiny.max(), E2M1)
    assert bool(torch.cat([encode, scale, tensor_scale[None]]).isfinite().all())
    zero = torch.zeros(3)
    encode, scale, tensor_scale = two_level(zero, zero.max(), E2M1)
    assert (scale.tolist(), float(tensor_scale)) == ([0.0] * 3, 0.0)


def test_an_infinity_leaves_nothing_finite_in_a_two_level_tensor() -> None:
    x = kinds()["inf"]
    assert not bool(fake_quant(x, read("e2m1/1x16/e4m3/fp32"), -1).isfinite().any())
    assert bool(fake_quant(kinds()["nan"], read("e2m1/1x16/e4m3/fp32"), -1).isnan().all())


def test_division_is_correctly_rounded_not_a_product_with_a_reciprocal() -> None:
    amax = torch.rand(4096, generator=torch.Generator().manual_seed(6)) + 0.5
    want = np.float32(2688) / amax.numpy()
    short = (np.float32(1) / amax.numpy()) * np.float32(2688)
    assert (want != short).mean() > 0.1, "the data tells the two apart"
    encode, decode = full_precision(amax, E4M3)
    assert np.array_equal(encode.numpy(), np.float32(448) / amax.numpy())
    assert np.array_equal(decode.numpy(), np.float32(1) / (np.float32(448) / amax.numpy()))
    for value in amax[:512]:
        found = two_level(value, value, E2M1)[2]
        assert float(found) == float(np.float32(value) / np.float32(2688))


@pytest.mark.parametrize(
    ("name", "amax", "encode", "decode"),
    [
        ("e4m3", 448.0, 1.0, 1.0),
        ("e4m3", 0.0, 1.0, 1.0),
        ("e4m3", torch.inf, 1.0, 1.0),
        ("e4m3", 1e-45, FLT_MAX, float(np.float32(1) / np.float32(FLT_MAX))),
        ("int8", 254.0, 2.0, 2.0),
        ("int8", 0.0, 1.0, 1.0),
        ("int8", torch.inf, torch.inf, torch.inf),  # finite / inf · inf is NaN: nothing is hidden
        ("int8", 1e-45, 1.0, 1.0),  # amax / 127 underflows
    ],
)
def test_edges_of_float32_scales(name: str, amax: float, encode: float, decode: float) -> None:
    found = full_precision(torch.tensor([amax]), ELEMENTS[name])
    assert [t.tolist() for t in found] == [[encode], [decode]]


@pytest.mark.parametrize("name", ["e4m3", "int8"])
def test_nan_makes_the_block_nan(name: str) -> None:
    encode, decode = full_precision(torch.tensor([torch.nan, 1.0]), ELEMENTS[name])
    assert [t.isnan().tolist() for t in (encode, decode)] == [[True, False]] * 2


@pytest.mark.parametrize("text", ["e2m1/1x32/ue8m0-rceil", "e4m3/1x32/ue8m0-rceil"])
def test_rceil_never_saturates_a_finite_block(text: str) -> None:
    amax = every_exponent()
    amax = amax[amax > 1e-30]
    block = torch.linspace(-1, 1, 32) * amax[:, None]
    rounded = fake_quant(block, read(text), -1)
    # At most half a step of the largest binade away: amax·2**-(mantissa bits + 1).
    mantissa = 1 if text.startswith("e2m1") else 3
    assert bool(((rounded - block).abs() <= amax[:, None] * 2.0 ** -(mantissa + 1)).all())
    assert same_bits(rounded.mT, fake_quant(block.mT, read(text), -2))


@pytest.mark.parametrize(
    "text", ["int8/row", "int4/tensor", "int8+asymmetric/row", "int4+asymmetric/1x53"]
)
@pytest.mark.parametrize("floor", ["1e-5", "0.01", "3"])
def test_a_range_stays_above_its_floor(text: str, floor: str) -> None:
    """EfficientLLMs' `Quantizer`, in numpy: its ranges are clamped before they become steps."""
    fmt = read(f"{text}/fp32:absmax+floor{floor}")
    least, top = np.float32(float(floor)), np.float32(fmt.element.max)
    low = np.float32(fmt.element.min)
    for kind, x in kinds().items():
        if kind in ("nan", "inf"):
            continue
        values = x.numpy()
        along = None if "tensor" in text else -1
        zero = np.float32(0)
        if "asymmetric" in text:
            start, end = (f(values, axis=along, keepdims=True) for f in (np.min, np.max))
            step = np.maximum(end - start, least) / (2 * top)
            zero = np.round(start / step - low)
        else:
            step = np.maximum(np.max(np.abs(values), axis=along, keepdims=True), least) / top
        want = (np.clip(np.round(values / step - zero), low, top) + zero) * step
        found = fake_quant(x, fmt, -1)
        assert torch.equal(found, torch.from_numpy(want)), kind
    small = kinds()["gradient"] * 1e-3
    assert not torch.equal(fake_quant(small, fmt, -1), fake_quant(small, read(f"{text}/fp32"), -1))


def test_an_mse_range_is_the_share_of_least_squared_error() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(6)).double()
    squared, absolute = [], []
    for share in (1 - i / 40 for i in range(20)):
        scale = x.abs().amax(-1, keepdim=True) * share / 7
        error = (x / scale).round().clamp(-7, 7) * scale - x
        squared.append(error.square().sum(-1))
        absolute.append(error.abs().sum(-1))
    least = torch.stack(squared).amin(0)
    found = (fake_quant(x.float(), read("int4/1x16/fp32:mse"), -1).double() - x).square().sum(-1)
    # Values are within four roundings to float32 of these: |(e + d)² - e²| <= 2 |e| |d| + |d|², summed.
    off = x.norm(dim=-1) * 2.0**-22
    assert bool(((found - least).abs() <= 2 * least.sqrt() * off + off.square()).all())
    other = torch.stack(squared).gather(0, torch.stack(absolute).argmin(0)[None])
    assert bool((other > 1.01 * least).any())  # another measure would choose other shares


@pytest.mark.parametrize("steps", [REFERENCE, CPU_STEPS], ids=["definition", "kernels"])
def test_a_code_worth_more_than_float16_holds_is_its_largest_number(steps: Kernels) -> None:
    fmt, x = read("e4m3/1x32/ue8m0-rceil"), torch.full((2, 32), 65504.0)
    x[1] = -x[1]
    assert fake_quant(x, fmt, -1, None, None, steps).tolist() == [[65536.0] * 32, [-65536.0] * 32]
    assert torch.equal(fake_quant(x.half(), fmt, -1, None, None, steps), x.half())
