"""Stochastic rounding with explicit noise: exact, unbiased to 1/256 of a step, still on the grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qgraph.formats import E2M1, Element, parse_format
from qgraph.numerics import Noise, fake_quant, quantize, round_to
from tests.numerics.data import PLAIN, exact_nvfp4, law, same_bits
from tests.numerics.reference import grid

ALL_NOISE = torch.arange(256)
each_element = pytest.mark.parametrize("fmt", PLAIN, ids=lambda f: f.name)


def at_every_256th(fmt: Element) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (x, lower neighbor, upper neighbor, k) with x = lower + k/256 of the step; float64 is exact."""
    values = torch.from_numpy(grid(fmt.name))
    low, high = values[:-1, None], values[1:, None]
    k = torch.arange(256, dtype=torch.float64)
    x = low + (high - low) * k / 256
    assert torch.equal(x.float().double(), x), "the points are float32 numbers"
    return x.float(), low.float().expand_as(x), high.float().expand_as(x), k.long().expand_as(x)


def rounded_with_all_noise(x: Tensor, fmt: Element) -> Tensor:
    """Round every x with each of the 256 bytes: [..., 256]."""
    spread = x[..., None].expand(*x.shape, 256)
    return round_to(spread, fmt, ALL_NOISE.expand_as(spread))


@each_element
def test_rounds_up_exactly_when_fraction_and_noise_reach_a_step(fmt: Element) -> None:
    x, low, high, k = at_every_256th(fmt)
    step = max(1, len(x) // 16)  # all binades, a sample of the intervals
    x, low, high, k = x[::step], low[::step], high[::step], k[::step]
    want = torch.where(k[..., None] + ALL_NOISE >= 256, high[..., None], low[..., None])
    assert same_bits(rounded_with_all_noise(x, fmt), want)
    assert same_bits(rounded_with_all_noise(-x, fmt), -want)


@each_element
def test_the_mean_over_all_noise_is_the_number_itself_on_256ths(fmt: Element) -> None:
    x, low, _, _ = at_every_256th(fmt)
    x = x[:: max(1, len(x) // 16)]
    assert torch.equal(rounded_with_all_noise(x, fmt).double().mean(-1), x.double())
    assert low.numel() >= x.numel()


@each_element
@law
@given(x=st.floats(0, 1, width=32))
def test_the_mean_over_all_noise_is_at_most_a_256th_of_a_step_low(fmt: Element, x: float) -> None:
    number = torch.tensor(x) * fmt.max
    rounded = rounded_with_all_noise(number, fmt).double()
    step = float(rounded.max() - rounded.min()) or float(np.diff(grid(fmt.name)).max())
    # The sum of fraction and noise is a float32 number: 2**-24 of what is summed, below 256 steps.
    slack = step * 2.0**-16
    assert -step / 256 - slack <= float(rounded.mean() - number.double()) <= slack


@each_element
def test_values_on_the_grid_never_move(fmt: Element) -> None:
    values = torch.from_numpy(grid(fmt.name)).float()
    values = torch.cat([values, -values])
    assert same_bits(rounded_with_all_noise(values, fmt), values[:, None].expand(-1, 256))


@each_element
def test_zero_noise_truncates_toward_zero(fmt: Element) -> None:
    x, low, _, _ = at_every_256th(fmt)
    assert same_bits(round_to(-x, fmt, torch.zeros_like(x, dtype=torch.int64)), -low)


@each_element
def test_noise_moves_a_number_to_one_of_its_neighbors(fmt: Element) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4096, generator=generator) * fmt.max
    noise = torch.randint(0, 256, (4096,), generator=generator)
    values = torch.from_numpy(grid(fmt.name)).float()
    above = torch.searchsorted(values, x)
    rounded = round_to(x, fmt, noise)
    assert bool(((rounded == values[above]) | (rounded == values[(above - 1).clamp(min=0)])).all())
    assert 0 < int((rounded > x).sum()) < 4096


@each_element
def test_large_numbers_saturate_whatever_the_noise(fmt: Element) -> None:
    x = torch.tensor([fmt.max * 1.5, 1e38, torch.inf])
    assert bool((rounded_with_all_noise(x, fmt) == fmt.max).all())
    assert bool((rounded_with_all_noise(-x, fmt) == -fmt.max).all())
    assert bool(rounded_with_all_noise(torch.tensor([torch.nan]), fmt).isnan().all())


def test_denormals_and_zeros_keep_their_sign() -> None:
    x = torch.tensor([-0.0, -1e-45, 1e-45])
    rounded = round_to(x, E2M1, torch.full((3,), 255))
    assert same_bits(rounded, torch.tensor([-0.0, -0.0, 0.0]))


def test_averaging_draws_gains_one_bit_per_fourfold() -> None:
    x = exact_nvfp4()
    fmt = parse_format("e2m1/1x16/e4m3/fp32")
    draws = [fake_quant(x.expand(64, 32, 64), fmt, -1, Noise(seed=s, site=1)) for s in range(4)]
    total = torch.cat(draws).double()  # 256 draws
    # The first row is left out: the block of the tensor's largest magnitude has steps of 224 and more.
    errors = [(total[:n].mean(0) - x)[1:] for n in (1, 4, 16, 64, 256)]
    energy = [float(error.square().sum() / x[1:].square().sum()) for error in errors]
    bits = [-0.5 * np.log2(e) for e in energy]
    # The error energy of 1860 elements varies by sqrt(2/1860) = 3.3 %: six deviations of a gain are 0.2 bit.
    assert np.diff(bits) == pytest.approx([1.0] * 4, abs=0.2)
    # Nothing is left but the variance p(1-p)·step² / n of each element: no floor.
    assert bits[-1] - bits[0] == pytest.approx(4.0, abs=0.2)


def test_each_seed_and_site_rounds_differently_but_repeatably() -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(5))
    fmt = parse_format("e2m1/1x16/e4m3/fp32")
    seen = [fake_quant(x, fmt, -1, Noise(seed=s, site=t)) for s in (1, 2) for t in (1, 2)]
    again = [fake_quant(x, fmt, -1, Noise(seed=s, site=t)) for s in (1, 2) for t in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


def test_only_clipping_keeps_the_mean_of_many_draws_from_the_number() -> None:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(15))
    fmt = parse_format("e2m1/1x16/e4m3/fp32")
    _, scales, tensor_scale = quantize(x, fmt, -1)
    unit = (scales.float() * tensor_scale).repeat_interleave(16, -1)
    # A scale that rounds down leaves its block's largest magnitudes above 6: they always come out as 6.
    clipped = x.abs() > 6 * unit * (1 + 2.0**-20)
    draws = torch.cat(
        [fake_quant(x.expand(64, 32, 64), fmt, -1, Noise(seed=s, site=1)) for s in range(4)]
    )
    error = draws.double().mean(0) - x
    assert 0.01 < float(clipped.float().mean()) < 0.1
    limit = torch.copysign(6 * scales.float().repeat_interleave(16, -1) * tensor_scale, x)
    assert torch.equal(draws[:, clipped], limit[clipped].expand(256, -1))
    # Elsewhere 1/256 of a step (at most 2) low, and six deviations (half a step each) of 256 draws.
    bound = (unit * 2) * (1 / 256 + 6 * 0.5 / 16)
    assert bool((error.abs() <= bound)[~clipped].all())
