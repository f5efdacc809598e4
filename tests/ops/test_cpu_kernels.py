"""The CPU kernels give the bits of the definitions, whatever the data, dtype, axis, shape and layout."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qgraph import numerics, ops
from qgraph.errors import ShapeError
from qgraph.formats import ROUNDINGS, parse_format, parse_rounding
from qgraph.numerics import TE_SIGNS, Noise
from qgraph.ops import element_steps
from qgraph.ops.cpu.build import why_unavailable
from qgraph.ops.cpu.one_pass import quantize_in_one_pass
from qgraph.ops.cpu.rotate import largest_bits, rotate_on_cpu
from qgraph.ops.cpu.two_passes import CPU_STEPS
from tests.cases import mostly_full
from tests.numerics.data import (
    FORMATS,
    OTHER_FORMATS,
    TELLING_FORMATS,
    every_exponent,
    exact_nvfp4,
    kinds,
    law,
    same_bits,
)


@pytest.fixture(autouse=True)
def on_several_threads() -> Iterator[None]:
    """Kernels share their work among threads, so few that a strip falls to each."""
    if (why := why_unavailable()) is not None:
        pytest.skip(why)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


DATA = kinds()
TELLING_OTHERS = tuple(text for text in TELLING_FORMATS if text in OTHER_FORMATS)
DTYPES = (torch.float32, torch.bfloat16)
NOISES = (None, Noise(seed=2**31 + 5, site=2**32 - 1))
each_format = pytest.mark.parametrize("text", FORMATS)


def differences(x: Tensor, text: str) -> list[object]:
    """Return the settings under which kernel and definition differ on `x`."""
    fmt = parse_format(text)
    return [
        (dtype, axis, noise)
        for dtype in DTYPES
        for axis in (-1, -2)
        for noise in NOISES
        if not same_bits(
            quantize_in_one_pass(x.to(dtype), fmt, axis, noise),
            numerics.fake_quant(x.to(dtype), fmt, axis, noise),
        )
    ]


@each_format
@pytest.mark.parametrize("kind", DATA)
def test_agree_on_every_kind_of_data(text: str, kind: str) -> None:
    assert differences(DATA[kind], text) == []


@pytest.mark.parametrize("text", mostly_full([*OTHER_FORMATS, *FORMATS], TELLING_FORMATS))
def test_the_two_kernels_of_any_format_agree_on_every_kind_of_data(text: str) -> None:
    fmt, wrong, compared = parse_format(text), [], 0
    noise = Noise(seed=2**31 + 5, site=9)
    for kind, matrix in DATA.items():
        some = ("nearest", "stochastic:3")
        modes = (
            (*ROUNDINGS, "stochastic:13", "stochastic:24")
            if kind in ("randn", "inf", "denormal")
            else some
        )
        for x in (matrix, matrix.mT, torch.stack([matrix, matrix * 3])):
            for axis, mode in itertools.product((-1, -2), modes):
                rounding = parse_rounding(mode)
                want = numerics.fake_quant(x, fmt, axis, noise, rounding)
                found = numerics.fake_quant(x, fmt, axis, noise, rounding, CPU_STEPS)
                compared += x.numel()
                if not same_bits(found, want):
                    wrong.append((kind, tuple(x.shape), axis, mode))
    assert wrong == []
    assert compared > 100_000


@pytest.mark.parametrize("text", mostly_full(OTHER_FORMATS, TELLING_OTHERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_op_takes_any_format_and_gives_the_definition(text: str, dtype: torch.dtype) -> None:
    fmt, seed = parse_format(text), torch.tensor([41])
    for x in (DATA["randn"].to(dtype), DATA["rows_exp3"].to(dtype)[::2, ::3], DATA["randn"][:0]):
        for shape_axis in (-1, -2):
            want = numerics.fake_quant(x, fmt, shape_axis, Noise(seed=41, site=2))
            assert same_bits(ops.fake_quant(x, text, shape_axis, seed, 2), want)
            stored = ops.quantize(x, text, shape_axis, seed, 2)
            fake = torch.library.opcheck(ops.quantize, (x, text, shape_axis, seed, 2))
            assert set(fake.values()) == {"SUCCESS"}
            back = ops.dequantize(*stored, text, list(x.shape), shape_axis, x.dtype)
            finite = want.isfinite()
            # A codebook and an integer store one zero; a float's sign of zero is stored.
            assert torch.equal(back[finite], want[finite])


@pytest.mark.parametrize("text", OTHER_FORMATS)
def test_no_format_does_nothing(text: str) -> None:
    x = DATA["randn"]
    found = ops.fake_quant(x, text, -1, torch.tensor([3]), 1, "nearest")
    finite = found.isfinite()
    like = torch.nn.functional.cosine_similarity(found[finite].double(), x[finite].double(), 0, 0)
    assert not torch.equal(found, x)
    assert float(finite.float().mean()) > 0.9
    assert 0.6 < float(like) < 1.0001, like


@each_format
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (1, 40),
        (40, 1),
        (3, 1, 40),
        (3, 40, 1),
        (2, 3, 5, 33),
        (4, 16, 16),
        (0, 16),
        (4, 0),
        (2, 0, 3),
    ],
)
def test_agree_on_every_shape(text: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(shape, generator=generator) * torch.exp(
        3 * torch.randn(shape, generator=generator)
    )
    assert differences(x, text) == []


@each_format
def test_agree_on_views_that_are_not_contiguous(text: str) -> None:
    x = DATA["rows_exp3"]
    assert differences(x.mT, text) == []
    assert differences(x[::2, ::3], text) == []
    assert differences(x[:16].unflatten(0, (2, 8)).movedim(0, -1), text) == []
    assert differences(x[:1].expand(9, 53), text) == []


@each_format
@pytest.mark.parametrize("shape", [(2, 20, 1100), (20, 2100), (150, 300)])
def test_agree_where_several_threads_strips_and_pieces_share_the_work(
    text: str, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(23)
    x = torch.randn(shape, generator=generator)
    x = x * torch.exp(3 * torch.randn(*shape[:-1], 1, generator=generator))
    fmt = parse_format(text)
    for axis in (-1, -2):
        for noise in NOISES:
            found = quantize_in_one_pass(x, fmt, axis, noise)
            assert same_bits(found, numerics.fake_quant(x, fmt, axis, noise)), (axis, noise)


@pytest.mark.parametrize(
    "text", ["e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e2m1/1x32/ue8m0-floor"]
)
def test_agree_at_every_exponent_of_the_block(text: str) -> None:
    top = every_exponent()
    x = torch.linspace(-1, 1, 32) * top[:, None]
    assert differences(x, text) == []


@pytest.mark.parametrize("text", ["e2m1/1x16/e4m3/fp32", "e4m3/tensor/fp32", "int8/row/fp32"])
def test_agree_at_every_exponent_of_the_tensor(text: str) -> None:
    fmt, pattern = parse_format(text), torch.linspace(-1, 1, 48).reshape(3, 16)
    wrong = [
        float(top)
        for top in every_exponent()
        if not same_bits(
            quantize_in_one_pass(pattern * top, fmt, -1, None),
            numerics.fake_quant(pattern * top, fmt, -1),
        )
    ]
    assert wrong == []


@each_format
@settings(law, max_examples=10)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-40, 40),
)
def test_agree_on_any_shape_and_seed(text: str, shape: list[int], seed: int, exponent: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    fmt, noise = parse_format(text), Noise(seed=seed, site=1)
    for axis in (-1, -2):
        assert same_bits(
            quantize_in_one_pass(x, fmt, axis, noise), numerics.fake_quant(x, fmt, axis, noise)
        )


@pytest.mark.parametrize("kind", DATA)
def test_the_rotation_agrees(kind: str) -> None:
    for dtype in DTYPES:
        for axis in (-1, -2):
            for rounding in ("bf16", "fp32"):
                for signs in (TE_SIGNS, "++-+", "-", "+-" * 16):
                    x = DATA[kind].to(dtype)
                    found, amax = rotate_on_cpu(x, signs, axis, rounding)
                    assert same_bits(found, numerics.hadamard(x, signs, axis, rounding)), (
                        dtype,
                        axis,
                        signs,
                    )
                    assert amax == largest_bits(found)


@pytest.mark.parametrize(
    "shape", [(1, 1), (40, 1), (3, 40, 1), (2, 3, 5, 33), (0, 16), (4, 0), (3, 70, 1100)]
)
def test_the_rotation_agrees_on_every_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(24))
    for axis in range(-len(shape), 0):
        found, _ = rotate_on_cpu(x, TE_SIGNS, axis, "bf16")
        assert same_bits(found, numerics.hadamard(x, TE_SIGNS, axis, "bf16")), axis


@pytest.mark.parametrize(
    "text", ["e2m1/1x16/e4m3/fp32", "e4m3/tensor/fp32", "e2m1/1x32/ue8m0-rceil"]
)
def test_rotating_and_quantizing_in_one_equals_one_after_the_other(text: str) -> None:
    seed = torch.tensor([99])
    for kind in ("randn", "rows_exp8", "nan", "inf", "zero", "denormal", "huge"):
        for dtype in DTYPES:
            for axis in (-1, -2):
                x = DATA[kind].to(dtype)
                both = ops.rotate_quant(x, TE_SIGNS, "bf16", text, axis, seed, 7)
                rotated = ops.hadamard(x, TE_SIGNS, axis, "bf16")
                assert same_bits(both, ops.fake_quant(rotated, text, axis, seed, 7)), (
                    kind,
                    dtype,
                    axis,
                )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000, 40000])
def test_the_largest_magnitude_is_found_wherever_it_stands_and_nan_is_largest(
    dtype: torch.dtype, size: int
) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(25)).to(dtype)
    for where in {0, size // 2, size - 1}:
        for value in (-3.0, torch.inf, torch.nan):
            y = x.clone()
            y[where] = value
            found = (
                torch.tensor(largest_bits(y), dtype=torch.int64).to(torch.int32).view(torch.float32)
            )
            assert same_bits(found, y[where].float().abs()), (where, value)


def test_known_magnitudes_are_used_as_given() -> None:
    x, fmt = DATA["randn"], parse_format("e2m1/1x16/e4m3/fp32")
    assert same_bits(
        quantize_in_one_pass(x, fmt, -1, None, largest_bits(x)),
        quantize_in_one_pass(x, fmt, -1, None),
    )


@pytest.mark.parametrize(
    ("shape", "axis"), [((16,), -1), ((2, 3, 16), 0), ((3, 16), 2), ((3, 16), -3)]
)
def test_an_axis_that_is_not_one_of_the_last_two_is_refused(
    shape: tuple[int, ...], axis: int
) -> None:
    with pytest.raises(ShapeError) as caught:
        quantize_in_one_pass(torch.ones(shape), parse_format("int8/row/fp32"), axis, None)
    want = f"quantization runs along one of the last two axes, not axis {axis} of {len(shape)}"
    assert str(caught.value) == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_give_what_the_definition_gives(dtype: torch.dtype) -> None:
    x = DATA["randn"].to(dtype)
    assert (element_steps(x) is CPU_STEPS) == (dtype == torch.float16)  # through float32
    found = ops.fake_quant(x, "e2m1/1x16/e4m3/fp32", -1)
    assert found.dtype == dtype
    assert torch.equal(found, numerics.fake_quant(x, parse_format("e2m1/1x16/e4m3/fp32"), -1))


def test_the_input_is_left_alone() -> None:
    for x in (DATA["randn"].clone(), DATA["randn"].mT.clone().mT):
        before = x.clone()
        ops.fake_quant(x, "e2m1/1x16/e4m3/fp32", -1)
        ops.rotate_quant(x, TE_SIGNS, "bf16", "e2m1/1x16/e4m3/fp32", -2)
        assert same_bits(x, before)


def test_averaging_draws_gains_one_bit_per_fourfold_up_to_4096() -> None:
    x, total, energy = exact_nvfp4(), torch.zeros(32, 64, dtype=torch.float64), []
    for draw in range(1, 4097):
        total += ops.fake_quant(x, "e2m1/1x16/e4m3/fp32", -1, torch.tensor([draw]), 5)
        if draw.bit_count() == 1 and draw.bit_length() % 2:
            energy.append(float((total / draw - x)[1:].square().sum()))
    gains = [0.5 * float(torch.log2(torch.tensor(a / b))) for a, b in itertools.pairwise(energy)]
    # 1860 elements that move: an energy varies by sqrt(2/1860) = 3.3 %, six deviations of a gain are 0.2 bit.
    assert gains == pytest.approx([1.0] * 6, abs=0.2)
    assert sum(gains) == pytest.approx(6.0, abs=0.2)
