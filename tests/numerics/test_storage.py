"""The bits hardware would store: codes, scales, packing, and back."""

import pytest
import torch

from qgraph.errors import ShapeError
from qgraph.formats import find_element, parse_format
from qgraph.numerics import Noise, dequantize, fake_quant, quantize
from qgraph.numerics.cast import code_dtype
from qgraph.numerics.storage import as_torch, swizzle, torch_dtype, unswizzle
from tests.numerics.data import FORMATS, OTHER_FORMATS, kinds, same_bits

DATA = kinds()
each_format = pytest.mark.parametrize("text", FORMATS)


@each_format
@pytest.mark.parametrize("kind", DATA)
def test_dequantize_gives_back_what_fake_quant_gives(text: str, kind: str) -> None:
    fmt = parse_format(text)
    for dtype, axis in ((torch.float32, -1), (torch.bfloat16, -2)):
        x = DATA[kind].to(dtype)
        stored = quantize(x, fmt, axis, visible=True)
        found = dequantize(*stored, fmt, x.shape, axis, dtype)
        want = fake_quant(x, fmt, axis)
        if text.startswith("int"):  # an integer has no negative zero
            found, want = found + 0.0, want + 0.0
        assert same_bits(found, want), dtype


@each_format
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 15), (15, 1), (3, 5, 33), (2, 2, 16, 31), (0, 16), (4, 0), (2, 0, 3)]
)
def test_any_shape_comes_back(text: str, shape: tuple[int, ...]) -> None:
    fmt = parse_format(text)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    for axis in (-1, -2):
        for noise in (None, Noise(seed=3, site=4)):
            stored = quantize(x, fmt, axis, noise, visible=True)
            found = dequantize(*stored, fmt, x.shape, axis, x.dtype)
            assert torch.equal(found, fake_quant(x, fmt, axis, noise)), (axis, noise)
            assert found.is_contiguous()


@each_format
@pytest.mark.parametrize("axis", [-1, -2])
def test_what_is_stored_is_contiguous(text: str, axis: int) -> None:
    for shape in ((37, 53), (3, 20, 40), (1, 16)):
        x = torch.ones(shape)
        assert all(t.is_contiguous() for t in quantize(x, parse_format(text), axis))


def test_two_codes_share_a_byte_the_even_index_in_the_low_half() -> None:
    x = torch.tensor([[0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -6.0, 0.0, -0.5, 0, 0, 0, 0, 0, 0]]) * 448
    codes, scales, tensor_scale = quantize(x, parse_format("e2m1/1x16/e4m3/fp32"), -1)
    assert [f"{int(c):02x}" for c in codes[0]] == ["21", "43", "65", "f7", "90", "00", "00", "00"]
    assert (scales.tolist(), float(tensor_scale)) == ([[448.0]], 1.0)


def test_int4_codes_share_a_byte_too() -> None:
    x = torch.tensor([[1.0, -1.0, 7.0, -7.0]])
    codes, scales, tensor_scale = quantize(x, parse_format("int4/1x4/fp32"), -1)
    assert [f"{int(c):02x}" for c in codes[0]] == ["f1", "97"]
    assert (scales.tolist(), float(tensor_scale)) == ([[1.0]], 1.0)


def test_zeros_are_stored_as_code_zero() -> None:
    for text in FORMATS:
        codes, _, _ = quantize(torch.zeros(16, 32), parse_format(text), -1)
        assert not bool(codes.any()), text


@pytest.mark.parametrize(
    ("text", "codes", "scales", "dtype"),
    [
        ("e2m1/1x16/e4m3/fp32", (2, 37, 32), (2, 37, 4), torch.float8_e4m3fn),
        ("e2m1/16x16/e4m3/fp32", (2, 48, 32), (2, 3, 4), torch.float8_e4m3fn),
        ("e4m3/1x32/ue8m0-rceil", (2, 37, 64), (2, 37, 2), torch.uint8),
        ("e2m1/1x32/ue8m0-floor", (2, 37, 32), (2, 37, 2), torch.uint8),
        ("int8/row/fp32", (2, 37, 53), (2, 37, 1), torch.float32),
        ("e4m3/tensor/fp32", (2, 37, 53), (2, 1, 1), torch.float32),
        ("e2m1/3x7/e4m3/fp32", (2, 39, 28), (2, 13, 8), torch.float8_e4m3fn),
        ("int4/1x5/fp32", (2, 37, 28), (2, 37, 11), torch.float32),
    ],
)
def test_shapes_and_dtypes_of_what_is_stored(
    text: str, codes: tuple[int, ...], scales: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.ones(2, 37, 53)
    found = quantize(x, parse_format(text), -1)
    assert [t.shape for t in found] == [codes, scales, ()]
    assert [t.dtype for t in found] == [torch.uint8, dtype, torch.float32]
    turned = quantize(x.mT, parse_format(text), -2)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(found, turned, strict=True))


def test_the_mx_scale_byte_is_a_biased_exponent() -> None:
    x = torch.zeros(4, 32)
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = 448.0, 449.0, torch.nan, 0.0
    assert quantize(x, parse_format("e4m3/1x32/ue8m0-rceil"), -1)[1].tolist() == [
        [127],
        [128],
        [255],
        [0],
    ]
    assert quantize(x, parse_format("e4m3/1x32/ue8m0-floor"), -1)[1].tolist() == [
        [127],
        [127],
        [255],
        [0],
    ]


def test_codes_of_square_blocks_are_transposes_of_each_other() -> None:
    x, fmt = kinds(32, 48)["rows_exp3"], parse_format("e4m3/16x16/ue8m0-rceil")
    along, across = quantize(x, fmt, -1), quantize(x, fmt, -2)
    assert torch.equal(along[0], across[0].mT)
    assert torch.equal(along[1], across[1].mT)


def test_the_tensor_scale_is_the_largest_magnitude_over_448_times_6() -> None:
    x = DATA["randn"]
    _, _, tensor_scale = quantize(x, parse_format("e2m1/1x16/e4m3/fp32"), -1)
    assert float(tensor_scale) == float(torch.div(x.abs().max(), torch.tensor(2688.0)))


@pytest.mark.parametrize("text", OTHER_FORMATS)
def test_every_other_format_round_trips_through_its_bits(text: str) -> None:
    fmt, noise = parse_format(text), Noise(seed=3, site=4)
    for kind in ("randn", "rows_exp3", "zero_block", "gradient", "negative_zero"):
        for axis in (-1, -2):
            x = DATA[kind]
            codes, scales, whole = quantize(x, fmt, axis, noise)
            found = dequantize(codes, scales, whole, fmt, x.shape, axis, x.dtype)
            want = fake_quant(x, fmt, axis, noise)
            assert torch.equal(found.nan_to_num(7.0), want.nan_to_num(7.0)), (kind, axis)
            assert codes.dtype == code_dtype(fmt.element)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("e4m3", torch.float8_e4m3fn),
        ("e5m2", torch.float8_e5m2),
        ("e4m3+b8+fnuz", torch.float8_e4m3fnuz),
        ("e5m2+b16+fnuz", torch.float8_e5m2fnuz),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("int8", torch.int8),
        ("e5m2+overflow", torch.float8_e5m2),
    ],
)
def test_torchs_own_dtypes_read_the_codes(name: str, dtype: torch.dtype) -> None:
    text = f"{name}/1x16/fp32"
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(6))
    codes, scales, whole = quantize(x, parse_format(text), -1)
    typed, _ = as_torch(codes, scales, parse_format(text))
    assert typed.dtype == dtype == torch_dtype(find_element(name))
    values = typed.float() * scales.repeat_interleave(16, -1)
    assert torch.equal(values, fake_quant(x, parse_format(text), -1))
    assert typed.data_ptr() == codes.data_ptr()
    assert float(whole) == 1.0


def test_packed_e2m1_and_e8m0_have_torchs_dtypes_and_the_rest_stays() -> None:
    fmt = parse_format("e2m1/1x32/ue8m0-rceil")
    codes, scales, _ = quantize(torch.randn(2, 64), fmt, -1)
    typed, powers = as_torch(codes, scales, fmt)
    assert (typed.dtype, powers.dtype) == (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu)
    assert torch.equal(powers.float(), torch.exp2(scales.float() - 127))
    odd = parse_format("e3m2/1x32/fp32")
    codes, scales, _ = quantize(torch.randn(2, 64), odd, -1)
    assert as_torch(codes, scales, odd) == (codes, scales)


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (129, 5), (300, 17), (32, 4), (0, 3)])
def test_swizzled_scales_lie_where_the_layout_says(shape: tuple[int, int]) -> None:
    scales = torch.arange(1, shape[0] * shape[1] + 1, dtype=torch.int32).view(shape)
    blocked = swizzle(scales)
    wide = -(-shape[1] // 4)
    for r in range(0, shape[0], 7):
        for c in range(shape[1]):
            tile = (r // 128) * wide + c // 4
            at = tile * 512 + (r % 32) * 16 + (r // 32 % 4) * 4 + c % 4
            assert int(blocked[at]) == int(scales[r, c])
    assert int((blocked != 0).sum()) == scales.numel()
    assert torch.equal(unswizzle(blocked, *shape), scales)


def test_swizzle_refuses_what_is_no_matrix_or_has_another_size() -> None:
    with pytest.raises(ShapeError, match=r"scales of one matrix are swizzled, not of shape \(3,\)"):
        swizzle(torch.ones(3))
    with pytest.raises(ShapeError, match="512 scales are not those of 129 x 4 blocks"):
        unswizzle(torch.ones(512), 129, 4)
