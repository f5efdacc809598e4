"""The CPU lowering: kernels built once by the machine's own C++ compiler and called through ctypes.

Bit for bit what `qgraph.numerics` defines; the definitions run instead when there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from qgraph.formats import (
    ROUNDINGS,
    Block,
    BlockFormat,
    Codebook,
    Element,
    FloatFormat,
    IntFormat,
    Range,
    Rounding,
)
from qgraph.numerics import ERRORS, ErrorKind, Kernels, Noise, Scales, check_axis, encode_by_table
from qgraph.ops.cpu_build import loaded, why_unavailable

# The scales that the kernel of one pass computes itself.
_FUSED_SCALES = {"e4m3": 0, "ue8m0-rceil": 1, "ue8m0-floor": 2, "fp32": 3}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(x: Tensor) -> bool:
    """Whether the kernels take `x`."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and why_unavailable() is None


def amax(x: Tensor) -> int:
    """Return the bits of the largest magnitude of a contiguous `x`; NaN is the largest of all."""
    return int(loaded().qgraph_amax(x.data_ptr(), x.numel(), x.dtype == torch.bfloat16))


@functools.cache
def fuses(fmt: BlockFormat, rounding: Rounding) -> bool:
    """Whether one kernel finds scales and codes of `fmt`: the formats of the usual recipes."""
    element = fmt.element
    if isinstance(element, FloatFormat):
        plain = element.signed and element.subnormals and element.saturate and element.unit == 1
        plain = plain and element.specials != "fnuz" and element.mantissa_bits > 0
        step = element.min_exponent - element.mantissa_bits
        plain = plain and step > -126 and element.max_exponent - element.mantissa_bits < 104
    else:
        plain = (
            isinstance(element, IntFormat) and element.range == "symmetric" and element.unit == 1
        )
    scaled = _fused_scale(fmt) in _FUSED_SCALES and fmt.two_level == (fmt.scale.name == "e4m3")
    usual = fmt.dialect == "te" and fmt.tensor_scale != "fp32-row" and str(fmt.block) != "column"
    return plain and scaled and usual and str(rounding) in ("nearest", "stochastic")


@functools.cache
def _fused_facts(fmt: BlockFormat) -> tuple[float, ...]:
    """Return whether one scale serves the tensor, and `Format` in cpu.cpp, in its order."""
    element = fmt.element
    mantissa, lowest = 0, 0
    if isinstance(element, FloatFormat):
        mantissa, lowest = element.mantissa_bits, element.min_exponent + 127
    return (
        str(fmt.block) == "tensor", isinstance(element, IntFormat), mantissa, lowest, element.max,
        _FUSED_SCALES[_fused_scale(fmt)], element.max_exponent,
    )  # fmt: skip


def _fused_scale(fmt: BlockFormat) -> str:
    """Return the scale's text; a delayed range is a largest magnitude that is known."""
    delayed = fmt.scale.range.kind == "delayed"
    return str(replace(fmt.scale, range=Range()) if delayed else fmt.scale)


def fake_quant(
    x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None, known_amax: int | None = None
) -> Tensor:
    """See `qgraph.numerics.fake_quant`, for formats that `fuses` names; nearest without noise.

    `known_amax` saves the pass that finds the largest magnitude.
    """
    check_axis(x, axis)
    if x.dtype == torch.float16:  # float32 inside, and one rounding at the end: the same values
        return fake_quant(x.float(), fmt, axis, noise, known_amax).to(x.dtype)
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    axis %= x.dim()
    size, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    outer = x.numel() // (size * inner)
    rows = x.shape[-2] if axis == x.dim() - 1 else 1  # a column (inner 1) is in memory one row
    whole, *element = _fused_facts(fmt)
    if known_amax is None:
        known_amax = amax(x) if whole or fmt.two_level else 0
    loaded().qgraph_fake_quant(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        outer, size, inner, rows, fmt.block.across or 1, fmt.block.along or size, whole,
        *element, known_amax,
        noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out


def block_amax(x: Tensor, block: Block, axis: int) -> Tensor:
    """See `qgraph.numerics.blocks.block_amax`; x float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float32)
    if x.numel():
        x = x.contiguous()
        loaded().qgraph_block_amax(x.data_ptr(), out.data_ptr(), *grid)
    return out


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    scales: Scales,
    axis: int,
    rounding: Rounding,
    noise: Noise | None,
    codes: bool,
) -> Tensor:
    """See `qgraph.numerics.blocks.round_blocks`; x float32."""
    grid, shape = _grid(x, fmt.block, axis)
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    parts = [scales.encode, scales.zero, scales.decode, scales.outer]
    if codes:
        parts[2] = parts[3] = None
    spread = [None if part is None else part.expand(shape).contiguous() for part in parts]
    element = fmt.element
    values = getattr(element, "values", ())
    loaded().qgraph_round_blocks(
        x.data_ptr(), out.data_ptr(), *grid,
        *[None if part is None else part.data_ptr() for part in spread],
        (ctypes.c_int * 11)(*_facts(element, rounding, scales)),
        (ctypes.c_float * 3)(*_limits(element)),
        len(values), _floats(values), _floats(getattr(element, "limits", ())),
        rounding.random and noise is not None,
        noise.seed & 0xFFFFFFFF if noise else 0,
        noise.site & 0xFFFFFFFF if noise else 0,
    )  # fmt: skip
    return out


def block_error(x: Tensor, values: Tensor, block: Block, axis: int, kind: ErrorKind) -> Tensor:
    """See `qgraph.numerics.blocks.block_error`; both float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float64)
    if x.numel():
        x, values, number = x.contiguous(), values.contiguous(), ERRORS.index(kind)
        loaded().qgraph_block_error(x.data_ptr(), values.data_ptr(), out.data_ptr(), *grid, number)
    return out


KERNELS = Kernels(largest=block_amax, round=round_blocks, error=block_error, encode=encode_by_table)


def _grid(x: Tensor, block: Block, axis: int) -> tuple[tuple[int, ...], torch.Size]:
    """Return how the kernels see `x`, and the shape of its blocks' scales."""
    check_axis(x, axis)
    by_column = axis % x.dim() == x.dim() - 2
    size, rows = x.shape[axis], x.shape[-1 if by_column else -2]
    across, along = block.across or max(rows, 1), block.along or max(size, 1)
    shape = torch.Size([*x.shape[:-2], -(-rows // across), 1, -(-size // along), 1])
    return (math.prod(x.shape[:-2]), rows, size, across, along, int(by_column)), shape


def _facts(element: Element, rounding: Rounding, scales: Scales) -> tuple[int, ...]:
    """Return the whole numbers of `Element` in cpu.cpp, in its order."""
    mode = list(ROUNDINGS).index(rounding.mode)
    if isinstance(element, FloatFormat):
        one_zero = element.specials == "fnuz" or not element.signed
        return (
            0, element.mantissa_bits, element.min_exponent + 127, mode, rounding.bits,
            element.subnormals, element.saturate, element.specials == "ieee", one_zero,
            scales.divides, scales.plus_zero,
        )  # fmt: skip
    kind = 2 if isinstance(element, Codebook) else 1
    tail = (scales.divides, scales.plus_zero)
    return (kind, 0, 0, mode, rounding.bits, True, True, False, False, *tail)


def _limits(element: Element) -> tuple[float, float, float]:
    if isinstance(element, Codebook):
        return element.min, element.max, 1.0
    return element.min / element.unit, element.max / element.unit, element.unit


@functools.cache
def _floats(values: tuple[float, ...]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(values))(*values)


def int8_codes(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes [M, K], the summed axis last, and float32 scales [M, 1], of a matrix.

    What `qgraph.numerics.quantize` gives to nearest for a symmetric integer of at most 8 bits with
    an fp32 scale for each row or for the tensor.
    """
    x = x.float().contiguous()
    by_column = axis % 2 == 0
    rows, size = (x.shape[1], x.shape[0]) if by_column else (x.shape[0], x.shape[1])
    codes = torch.zeros((rows, size), dtype=torch.int8)
    scales = torch.ones((rows, 1), dtype=torch.float32)
    if x.numel():
        whole = str(fmt.block) == "tensor"
        loaded().qgraph_int8_codes(
            x.data_ptr(), codes.data_ptr(), scales.data_ptr(), rows, size, by_column, fmt.element.max,
            whole, amax(x) if whole else 0,
        )  # fmt: skip
    return codes, scales


def rescale(sums: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return sums · a · b (+ bias) in float32: [M, N] int32, a [M, 1], b [N, 1], bias [N]."""
    out = torch.empty(sums.shape, dtype=torch.float32)
    if sums.numel():
        sums, a, b = sums.contiguous(), a.contiguous(), b.contiguous()
        added = None if bias is None else bias.float().contiguous()
        loaded().qgraph_rescale(
            sums.data_ptr(), out.data_ptr(), *sums.shape, a.data_ptr(), b.data_ptr(),
            None if added is None else added.data_ptr(),
        )  # fmt: skip
    return out


def hadamard(x: Tensor, signs: str, axis: int, output: str) -> tuple[Tensor, int]:
    """See `qgraph.numerics.hadamard`; also returns the bits of the largest magnitude."""
    if x.dtype == torch.float16:
        rotated = hadamard(x.float(), signs, axis, output)[0].to(x.dtype)
        return rotated, amax(rotated.float())
    x = x.contiguous()
    axis %= x.dim()
    n, size = len(signs), x.shape[axis]
    shape = (*x.shape[:axis], -(-size // n) * n, *x.shape[axis + 1 :])
    out = torch.empty(shape, dtype=x.dtype)
    if not x.numel():
        return out, 0
    inner = math.prod(x.shape[axis + 1 :])
    bits = loaded().qgraph_hadamard(
        x.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        x.numel() // (size * inner), size, inner, n, _sign_array(signs), output == "bf16",
    )  # fmt: skip
    return out, int(bits)


@functools.cache
def _sign_array(signs: str) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(signs))(*(1.0 if s == "+" else -1.0 for s in signs))
