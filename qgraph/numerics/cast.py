"""Rounding to an element format, and its codes."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import Element, FloatFormat


def round_to(x: Tensor, fmt: Element, noise: Tensor | None = None) -> Tensor:
    """Round `x` to the values of `fmt`, to nearest with ties to even, saturating.

    With `noise` the rounding is stochastic: |x| = (n + f)·step goes up when n + f + noise/256,
    a float32 sum, reaches n + 1, so up with probability f to a resolution of 1/256. The sign of zero is kept,
    NaN stays NaN, infinities saturate.

    Shapes: any -> the same; noise as x.
    Dtypes: float32 -> float32; noise int64, 0 to 255.
    Source: IEEE 754-2019 4.3.1; the stochastic rule is Transformer Engine's NVFP4 fallback
    (`core_nvfp4.cuh`), one random byte an element.
    """
    magnitude = x.abs().clamp(max=fmt.max)
    steps = magnitude / (step := _step(magnitude, fmt))  # a power of two: exact
    rounded = torch.round(steps) if noise is None else torch.floor(steps + noise.float() / 256)
    return torch.copysign((rounded * step).clamp(max=fmt.max), x)


def _step(magnitude: Tensor, fmt: Element) -> Tensor:
    """Return the distance between neighbours of `fmt` at `magnitude`, a power of two."""
    if not isinstance(fmt, FloatFormat):
        return torch.ones_like(magnitude)
    exponent = torch.frexp(magnitude).exponent - 1  # frexp's mantissa is in [0.5, 1)
    exponent = exponent.clamp(min=fmt.min_exponent) - fmt.mantissa_bits
    return torch.ldexp(torch.ones_like(magnitude), exponent)


def encode(values: Tensor, fmt: Element) -> Tensor:
    """Return the codes of `values`, which must lie on the grid of `fmt`.

    Shapes: any -> the same.
    Dtypes: float32 -> uint8; integers in two's complement. A float's -0 has its own code.
    """
    if not isinstance(fmt, FloatFormat):
        return values.to(torch.int16).bitwise_and((1 << fmt.bits) - 1).to(torch.uint8)
    magnitude = values.abs()
    exponent = torch.frexp(magnitude).exponent - 1
    normal = magnitude >= fmt.min_normal
    steps = (magnitude / _step(magnitude, fmt)).to(torch.int32)  # the hidden bit included
    field = (exponent - fmt.min_exponent).clamp(min=0) << fmt.mantissa_bits
    code = torch.where(normal, field + steps, steps)
    return (code + (torch.signbit(values).int() << (fmt.bits - 1))).to(torch.uint8)


def decode(codes: Tensor, fmt: Element) -> Tensor:
    """Return the values of `codes`; codes that are not numbers decode to NaN.

    Shapes: any -> the same.
    Dtypes: uint8 -> float32.
    """
    code = codes.to(torch.int32)
    if not isinstance(fmt, FloatFormat):
        half = 1 << (fmt.bits - 1)
        return ((code ^ half) - half).float()
    body = code & ((1 << (fmt.bits - 1)) - 1)
    field, mantissa = body >> fmt.mantissa_bits, body & ((1 << fmt.mantissa_bits) - 1)
    hidden = (field > 0).int() << fmt.mantissa_bits
    exponent = field.clamp(min=1) - fmt.bias - fmt.mantissa_bits
    value = torch.ldexp((mantissa + hidden).float(), exponent)
    value = torch.where(value > fmt.max, torch.nan, value)
    return torch.where(code >> (fmt.bits - 1) > 0, -value, value)
