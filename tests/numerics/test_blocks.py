"""fake_quant against the numpy reference, bit for bit, on all kinds of data; and its laws."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qgraph.errors import ShapeError
from qgraph.formats import parse_format
from qgraph.numerics import Noise, fake_quant, random_bits
from tests.numerics import reference
from tests.numerics.data import FORMATS, TWO_LEVEL, every_exponent, kinds, law, same_bits

DATA = kinds()
each_format = pytest.mark.parametrize("text", FORMATS)


def expected(x: Tensor, text: str, axis: int, noise: Noise | None = None) -> Tensor:
    bits = None
    if noise is not None:
        bits = random_bits(x.shape, axis, noise.seed, noise.site, x.device).numpy()
    values = reference.fake_quant(x.float().contiguous().numpy(), text, axis, bits)
    if x.dtype == torch.float32:
        return torch.from_numpy(values)
    with np.errstate(all="ignore"):
        half = values.astype(ml_dtypes.bfloat16).view(np.int16)
    return torch.from_numpy(half).view(torch.bfloat16)


@each_format
@pytest.mark.parametrize("kind", DATA)
def test_agrees_with_the_reference(text: str, kind: str) -> None:
    for dtype, axis in ((torch.float32, -1), (torch.float32, -2), (torch.bfloat16, -1)):
        x = DATA[kind].to(dtype)
        found = fake_quant(x, parse_format(text), axis)
        assert same_bits(found, expected(x, text, axis)), (dtype, axis)


@each_format
@pytest.mark.parametrize(
    "kind", ["randn", "rows_exp8", "midpoints", "denormal", "negative_zero", "nan", "inf"]
)
def test_stochastic_rounding_agrees_with_the_reference(text: str, kind: str) -> None:
    noise = Noise(seed=123, site=45)
    for axis in (-1, -2):
        x = DATA[kind]
        found = fake_quant(x, parse_format(text), axis, noise)
        assert same_bits(found, expected(x, text, axis, noise)), axis


@each_format
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 48), (48, 1), (2, 3), (3, 16, 32), (2, 2, 5, 17), (16, 16)]
)
def test_shapes_agree_with_the_reference(text: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator) * torch.exp(
        3 * torch.randn(shape, generator=generator)
    )
    for axis in (-1, -2, x.dim() - 1, x.dim() - 2):
        flat = x.reshape(-1, *shape[-2:])
        low = axis if axis < 0 else axis - x.dim()
        want = expected(flat, text, low).reshape(shape)
        assert same_bits(fake_quant(x, parse_format(text), axis), want), axis


@pytest.mark.parametrize(
    "text", [*TWO_LEVEL, "e4m3/tensor/fp32", "int8/tensor/fp32", "e4m3/tensor/ue8m0-rceil"]
)
def test_agrees_when_the_tensors_amax_sits_at_each_power_of_two(text: str) -> None:
    pattern = torch.linspace(-1, 1, 48).reshape(3, 16)
    for amax in every_exponent():
        x = pattern * amax
        x[1, 3] = amax
        assert same_bits(fake_quant(x, parse_format(text), -1), expected(x, text, -1)), float(amax)


@pytest.mark.parametrize("text", ["e2m1/1x16/e4m3/fp32", "e2m1/16x16/e4m3/fp32"])
def test_agrees_when_the_blocks_amax_sits_at_each_power_of_two(text: str) -> None:
    amax = every_exponent()
    amax = amax[(amax > 2.0**-24) & (amax < 2.0**12)]
    x = torch.linspace(-1, 1, 16).expand(len(amax), 16) * amax[:, None]
    assert same_bits(fake_quant(x, parse_format(text), -1), expected(x, text, -1))


@each_format
def test_both_axes_of_a_transposed_tensor_give_the_transposed_result(text: str) -> None:
    fmt, x = parse_format(text), DATA["rows_exp3"]
    for noise in (None, Noise(seed=1, site=2)):
        assert same_bits(fake_quant(x.mT, fmt, -2, noise), fake_quant(x, fmt, -1, noise).mT)


@pytest.mark.parametrize(
    "text", ["e2m1/16x16/e4m3/fp32", "e3m2/8x8/ue8m0-rceil", "e4m3/tensor/fp32"]
)
def test_square_blocks_give_the_same_numbers_along_both_axes(text: str) -> None:
    fmt, x = parse_format(text), DATA["rows_exp3"]
    assert same_bits(fake_quant(x, fmt, -1), fake_quant(x, fmt, -2))


@pytest.mark.parametrize("text", ["e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "int8/row/fp32"])
def test_narrow_blocks_give_other_numbers_along_the_other_axis(text: str) -> None:
    fmt, x = parse_format(text), DATA["rows_exp3"]
    assert not torch.equal(fake_quant(x, fmt, -1), fake_quant(x, fmt, -2))


@each_format
def test_nan_poisons_its_block_at_least_and_its_tensor_at_most(text: str) -> None:
    fmt, x = parse_format(text), DATA["nan"]
    rounded = fake_quant(x, fmt, -1)
    assert bool(rounded[x.isnan()].isnan().all())
    whole = fmt.two_level or fmt.block.across is None
    assert bool(rounded.isnan().all()) == whole


@each_format
@law
@given(shift=st.integers(-12, 12))
def test_a_power_of_two_passes_through(text: str, shift: int) -> None:
    fmt, x = parse_format(text), DATA["rows_exp3"][:16, :32]
    assert same_bits(fake_quant(x * 2.0**shift, fmt, -1), fake_quant(x, fmt, -1) * 2.0**shift)


@each_format
def test_rounding_is_odd(text: str) -> None:
    fmt = parse_format(text)
    for kind in ("randn", "rows_exp8", "midpoints", "negative_zero"):
        assert same_bits(fake_quant(-DATA[kind], fmt, -1), -fake_quant(DATA[kind], fmt, -1)), kind


@pytest.mark.parametrize("text", [f for f in FORMATS if "ue8m0-rceil" in f])
def test_a_power_of_two_scale_that_fits_makes_rounding_idempotent(text: str) -> None:
    fmt = parse_format(text)
    once = fake_quant(DATA["randn"], fmt, -1)
    assert same_bits(fake_quant(once, fmt, -1), once)


@each_format
@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 0), (2, 0, 16), (2, 16, 0), (0, 3, 16)])
def test_empty_tensors_stay_empty(text: str, shape: tuple[int, ...]) -> None:
    for axis in (-1, -2):
        for noise in (None, Noise(seed=1, site=1)):
            assert fake_quant(torch.zeros(shape), parse_format(text), axis, noise).shape == shape


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((16,), -1), ((16,), 0), ((2, 3, 16), 0), ((2, 3, 16), -3), ((3, 16), 2), ((3, 16), -3)],
)
def test_an_axis_that_is_not_one_of_the_last_two_is_refused(
    shape: tuple[int, ...], axis: int
) -> None:
    with pytest.raises(ShapeError) as caught:
        fake_quant(torch.ones(shape), parse_format("int8/row/fp32"), axis)
    want = f"quantization runs along one of the last two axes, not axis {axis} of {len(shape)}"
    assert str(caught.value) == want


def test_the_input_is_left_alone_and_the_output_is_contiguous() -> None:
    x = DATA["randn"].clone().mT
    before = x.clone()
    for text in FORMATS:
        for axis in (-1, -2):
            out = fake_quant(x, parse_format(text), axis)
            assert out.is_contiguous()
            assert out.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
