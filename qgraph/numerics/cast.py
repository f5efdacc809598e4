"""Rounding to an element format, and its codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qgraph.formats import NEAREST, STOCHASTIC, Codebook, Element, FloatFormat, IntFormat, Rounding

_FLT_MAX = torch.finfo(torch.float32).max
_TINY = 2.0**-149


def round_to(
    x: Tensor, fmt: Element, noise: Tensor | None = None, rounding: Rounding | None = None
) -> Tensor:
    """Round `x` to the values of `fmt`.

    |x| = (n + f)·step lies between the neighbors n·step and (n + 1)·step; the mode says which (see
    `qgraph.formats.rounding`). Stochastic rounding takes the greater when n + f + noise/2**bits, a
    float32 sum, reaches n + 1: with probability f, to a resolution of 2**-bits, or of the sum's last
    place where that is coarser. It is the rounding where there is noise and none is named; without
    noise it is nearest. NaN stays NaN; the sign of zero is kept where the format has two. What is out
    of range, infinities too, saturates, or overflows as the format says.

    Shapes: any -> the same; noise as x.
    Dtypes: float32 -> float32; noise int64, 0 to 2**rounding.bits - 1.
    Source: IEEE 754-2019 4.3; stochastic: Transformer Engine's NVFP4 fallback (`core_nvfp4.cuh`)
    with 8 bits, gfloat's StochasticFastest.
    """
    rounding = rounding or (NEAREST if noise is None else STOCHASTIC)
    if isinstance(fmt, Codebook):
        return _look_up(x.contiguous(), fmt, rounding, noise)
    if fmt.unit != 1:
        return round_to(x / fmt.unit, _without_unit(fmt), noise, rounding) * fmt.unit
    saturates = not isinstance(fmt, FloatFormat) or fmt.saturate
    bounded = x.clamp(fmt.min, fmt.max) if saturates else x.clamp(min=0) if fmt.min == 0 else x
    magnitude = bounded.abs().clamp(max=_FLT_MAX)
    step, field = _step(magnitude, fmt)
    steps = magnitude / step  # exact: a power of two
    low = torch.floor(steps)
    odd = (low if field is None else field) % 2 == 1
    size = (low + _goes_away(steps, low, odd, x < 0, rounding, noise)) * step
    if isinstance(fmt, FloatFormat) and not fmt.saturate:
        size = _overflow(size, x, fmt, rounding)
    result = torch.copysign(size, bounded)
    if saturates:  # a float32 sum with the noise may have gone past the last neighbor
        result = result.clamp(fmt.min, fmt.max)
    if isinstance(fmt, FloatFormat) and (fmt.specials == "fnuz" or not fmt.signed):
        result = torch.where(result == 0, 0.0, result)
    return result


def _without_unit(fmt: FloatFormat | IntFormat) -> Element:
    if isinstance(fmt, IntFormat):
        return replace(fmt, fraction_bits=0)
    return replace(fmt, offset=float(fmt.bias))


def _step(magnitude: Tensor, fmt: FloatFormat | IntFormat) -> tuple[Tensor, Tensor | None]:
    """Return the distance between neighbors at `magnitude`, a power of two.

    With no mantissa bits also the exponent field, whose parity is then the code's.
    """
    if isinstance(fmt, IntFormat):
        return torch.ones_like(magnitude), None
    exponent = torch.frexp(magnitude).exponent - 1  # frexp's mantissa is in [0.5, 1)
    normal = exponent.clamp(min=fmt.min_exponent)
    if not fmt.subnormals:  # nothing between zero and the smallest normal value
        mantissa_bits = torch.where(exponent < fmt.min_exponent, 0, fmt.mantissa_bits)
    else:
        mantissa_bits = torch.full_like(exponent, fmt.mantissa_bits)
    step = torch.ldexp(torch.ones_like(magnitude), normal - mantissa_bits)
    if fmt.mantissa_bits:
        return step, None
    return step, torch.where(exponent < fmt.min_exponent, 0, normal - fmt.min_exponent + 1)


def _goes_away(
    steps: Tensor,
    low: Tensor,
    odd: Tensor,
    negative: Tensor,
    rounding: Rounding,
    noise: Tensor | None,
) -> Tensor:
    """Whether each |x| = steps goes to the neighbor away from zero, low + 1."""
    fraction = steps - low
    inexact = fraction > 0
    match rounding.mode:
        case "nearest":
            return (fraction > 0.5) | ((fraction == 0.5) & odd)
        case "nearest_away":
            return fraction >= 0.5
        case "nearest_zero":
            return fraction > 0.5
        case "nearest_odd":
            return (fraction > 0.5) | ((fraction == 0.5) & ~odd)
        case "toward_zero":
            return torch.zeros_like(inexact)
        case "up":
            return inexact & ~negative
        case "down":
            return inexact & negative
        case "odd":
            return inexact & ~odd
        case "stochastic":
            assert noise is not None, "stochastic rounding needs random bits"
            return steps + noise.float() / (1 << rounding.bits) >= low + 1
    assert noise is not None, "stochastic rounding needs random bits"
    return inexact & (noise >= 1 << (rounding.bits - 1))


def _overflow(result: Tensor, x: Tensor, fmt: FloatFormat, rounding: Rounding) -> Tensor:
    """Return magnitudes with those beyond the format's replaced, as IEEE 754-2019 7.4 says."""
    over = result > fmt.max
    special = torch.inf if fmt.specials == "ieee" else torch.nan
    stays = torch.zeros_like(over)
    if rounding.mode == "toward_zero":
        stays = x.isfinite()
    elif rounding.mode in ("up", "down"):
        stays = x.isfinite() & ((x < 0) if rounding.mode == "up" else (x > 0))
    top = torch.where(stays, fmt.max, special)
    return torch.where(over | x.isinf(), top, result)


def _look_up(x: Tensor, fmt: Codebook, rounding: Rounding, noise: Tensor | None) -> Tensor:
    values = torch.tensor(fmt.values, device=x.device)
    last = len(fmt.values) - 1
    low = (torch.bucketize(x, values, right=True) - 1).clamp(0, last - 1)
    # Below zero the near neighbor, on zero's side, is the upper one; in a list without zero the
    # two neighbors of zero are taken as if they lay above it.
    negative = (x < 0) & (values[low + 1] <= 0)
    near, far = low + negative.long(), low + (~negative).long()
    start, end = values[near], values[far]
    if rounding.mode.startswith("nearest"):
        limits = torch.tensor(fmt.limits, device=x.device)[low]
        beyond = torch.where(negative, x < limits, x > limits)
        fraction = torch.where(beyond, 0.75, torch.where(x == limits, 0.5, 0.25))
    else:  # strictly between 0 and 1, whatever the division rounds to
        fraction = ((x - start) / (end - start)).clamp(_TINY, 1 - 2.0**-24)
    reaches = torch.where(negative, x <= end, x >= end)
    fraction = torch.where(torch.where(negative, x >= start, x <= start), 0.0, fraction)
    away = _goes_away(fraction, torch.zeros_like(x), near % 2 == 1, negative, rounding, noise)
    found = torch.where(reaches | away, end, start)
    return torch.where(x.isnan(), x, found)


def place_between(x: Tensor, fmt: Element) -> Tensor:
    """Return where |x| lies between its neighbors: 0 on the one nearer zero, below 1 under the other.

    Shapes: any -> the same.
    Dtypes: float32.
    """
    if isinstance(fmt, Codebook):
        values = torch.tensor(fmt.values, device=x.device)
        index = torch.bucketize(x.contiguous(), values, right=True) - 1
        low = index.clamp(0, len(fmt.values) - 2)
        place = ((x - values[low]) / (values[low + 1] - values[low])).clamp(0, 1)
        return torch.where(x < 0, 1 - place, place) % 1
    magnitude = (x / fmt.unit).abs().clamp(max=_FLT_MAX)
    steps = magnitude / _step(magnitude, fmt)[0]
    return steps - torch.floor(steps)


def encode(values: Tensor, fmt: Element) -> Tensor:
    """Return the codes of `values`, which must lie on the grid of `fmt`.

    A float's -0 has its own code where the format has one. NaN has the format's NaN code, or that
    of zero where there is none.

    Shapes: any -> the same.
    Dtypes: float32 -> that of `code_dtype`; integers in two's complement.
    """
    return _code(values.contiguous(), fmt).to(code_dtype(fmt))


def code_dtype(fmt: Element) -> torch.dtype:
    """Return the dtype of codes: uint8, uint16 above 8 bits, int32 above 16 (tf32)."""
    if fmt.bits > 16:
        return torch.int32
    return torch.uint8 if fmt.bits <= 8 else torch.uint16


def _code(values: Tensor, fmt: Element) -> Tensor:
    if isinstance(fmt, Codebook):
        table = torch.tensor(fmt.values, device=values.device)
        return torch.bucketize(values, table).clamp(max=len(fmt.values) - 1).to(torch.int32)
    scaled = values / fmt.unit
    if isinstance(fmt, IntFormat):
        return scaled.nan_to_num(0.0).to(torch.int32).bitwise_and((1 << fmt.bits) - 1)
    plain = _without_unit(fmt)
    assert isinstance(plain, FloatFormat), "a float stays a float"
    scaled = (
        torch.round(scaled / plain.min_positive) * plain.min_positive if fmt.unit != 1 else scaled
    )
    magnitude = torch.where(scaled.isfinite(), scaled.abs(), 0.0)
    step, _ = _step(magnitude, plain)
    exponent = torch.frexp(magnitude).exponent - 1
    field = (exponent - fmt.min_exponent).clamp(min=0) << fmt.mantissa_bits
    steps = (magnitude / step).to(torch.int32)  # the hidden bit included
    code = torch.where(magnitude >= plain.min_normal, field + steps, steps)
    sign = torch.signbit(values).int() << (fmt.bits - 1) if fmt.signed else torch.zeros_like(code)
    code = torch.where(values.isinf(), _infinity(fmt), code)
    return torch.where(values.isnan(), _nan_code(fmt), code + sign)


def _infinity(fmt: FloatFormat) -> int:
    return ((1 << fmt.exponent_bits) - 1) << fmt.mantissa_bits


def _nan_code(fmt: FloatFormat) -> int:
    return {
        "ieee": _infinity(fmt) | (1 << max(fmt.mantissa_bits - 1, 0)) if fmt.mantissa_bits else 0,
        "nan_only": _infinity(fmt) | ((1 << fmt.mantissa_bits) - 1),
        "fnuz": 1 << (fmt.bits - 1),
        "none": 0,
    }[fmt.specials]


def decode(codes: Tensor, fmt: Element) -> Tensor:
    """Return the values of `codes`: infinity and NaN for those that stand for them.

    Shapes: any -> the same.
    Dtypes: uint8 or uint16 -> float32.
    """
    code = codes.to(torch.int32)
    if isinstance(fmt, Codebook):
        table = torch.tensor(fmt.values, device=codes.device)
        return table[code.clamp(max=len(fmt.values) - 1).long()]
    if isinstance(fmt, IntFormat):
        half = 1 << (fmt.bits - 1)
        return ((code ^ half) - half).float() * fmt.unit
    width = fmt.exponent_bits + fmt.mantissa_bits
    body, negative = code & ((1 << width) - 1), code >> width > 0
    field, mantissa = body >> fmt.mantissa_bits, body & ((1 << fmt.mantissa_bits) - 1)
    if not fmt.subnormals:
        mantissa = torch.where(field > 0, mantissa, 0)
    hidden = (field > 0).int() << fmt.mantissa_bits
    exponent = field.clamp(min=1) - fmt.bias - fmt.mantissa_bits
    value = torch.ldexp((mantissa + hidden).float(), exponent) * fmt.unit
    if fmt.specials == "fnuz":
        value = torch.where(negative & (body == 0), torch.nan, value)
    else:
        beyond = torch.where(body == _infinity(fmt), torch.inf, torch.nan)
        beyond = beyond if fmt.specials == "ieee" else torch.full_like(value, torch.nan)
        value = torch.where(value > fmt.max, beyond, value)
    return torch.where(negative, -value, value)
