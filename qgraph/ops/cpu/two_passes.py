"""Any format on a CPU in two passes: the range of each block, and the rounding under its scale.

What lies between, finding the scales, is `qgraph.numerics`' own. The same bits.
"""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import (
    ROUNDINGS,
    Block,
    BlockFormat,
    Codebook,
    Element,
    FloatFormat,
    Rounding,
)
from qgraph.numerics import ERRORS, ErrorKind, Kernels, Noise, Scales, check_axis, encode_by_table
from qgraph.ops.cpu.build import loaded
from qgraph.ops.cpu.rotate import rotate_on_cpu, why_not_cpu
from qgraph.ops.machine import Machine
from qgraph.ops.work import How, Kernel, Quantize


def _takes(work: Quantize, machine: Machine) -> str | None:
    return why_not_cpu(work.dtype, machine)


def _block_amax(x: Tensor, block: Block, axis: int) -> Tensor:
    """See `qgraph.numerics.blocks.block_amax`; x float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float32)
    if x.numel():
        x = x.contiguous()
        loaded().qgraph_block_amax(x.data_ptr(), out.data_ptr(), *grid)
    return out


def _round_blocks(
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


def _block_error(x: Tensor, values: Tensor, block: Block, axis: int, kind: ErrorKind) -> Tensor:
    """See `qgraph.numerics.blocks.block_error`; both float32."""
    grid, shape = _grid(x, block, axis)
    out = torch.zeros(shape, dtype=torch.float64)
    if x.numel():
        x, values, number = x.contiguous(), values.contiguous(), ERRORS.index(kind)
        loaded().qgraph_block_error(x.data_ptr(), values.data_ptr(), out.data_ptr(), *grid, number)
    return out


CPU_STEPS = Kernels(
    largest=_block_amax, round=_round_blocks, error=_block_error, encode=encode_by_table
)


def _values(x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How) -> Tensor:
    if how.signs:
        x, _ = rotate_on_cpu(x, how.signs, how.axis, how.output)
    return numerics.fake_quant(x, fmt, how.axis, how.noise, rounding, CPU_STEPS, how.amax)


def _codes(
    x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    return numerics.quantize(x, fmt, how.axis, how.noise, rounding, CPU_STEPS, visible=True)


CPU_VALUES = Kernel(
    name="cpu, two passes",
    work=Quantize,
    wanted=("values",),
    device="cpu",
    takes=_takes,
    run=_values,
)
CPU_CODES = Kernel(
    name="cpu codes, two passes",
    work=Quantize,
    wanted=("codes",),
    device="cpu",
    takes=_takes,
    run=_codes,
)


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
