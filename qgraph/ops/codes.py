"""Codes of 8 bits for a GPU's matrix unit: both orientations of a matrix from one read.

    quantize_both(x, format) -> (codes, scales) along N, then along M

Each side is what `quantize` stores: bit for bit what `qgraph.numerics` defines.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import NEAREST, BlockFormat, FloatFormat, parse_format
from qgraph.ops import gpu
from qgraph.ops.gpu import Launch

Four = tuple[Tensor, Tensor, Tensor, Tensor]
_TILE, _WARPS, _PARTS = (
    (128, 64),
    4,
    1024,
)  # the fastest of those tried on an H200, with its few spills


def takes(fmt: BlockFormat) -> bool:
    """Whether the kernel stores `fmt`: 8-bit floats with one scale a tensor or a power of two."""
    element, across = fmt.element, fmt.block.across
    if not isinstance(element, FloatFormat) or element.name not in ("e4m3", "e5m2"):
        return False
    fine = str(fmt.block) == "tensor" or (across == 1 and fmt.scale.kind == "power")
    return fine and fmt.scale.range.kind != "delayed" and gpu.fuses(fmt, NEAREST)


def quantize_both(x: Tensor, format: str) -> Four:
    """Return codes and scales of x [M, N] along its last axis, then along its first."""
    fmt = parse_format(format)
    if gpu.supports(x) and takes(fmt):
        return on_gpu(x, fmt, row=True, column=True)
    row, column = (numerics.quantize(x, fmt, axis)[:2] for axis in (-1, -2))
    return (*row, *column)


def quantize_both_fake(x: Tensor, format: str) -> Four:
    """Return empty results of `quantize_both`."""
    return _results(x, parse_format(format), True, True)


def on_gpu(x: Tensor, fmt: BlockFormat, *, row: bool, column: bool) -> Four:
    """Return what `quantize_both` does, by the kernels; a side that is not asked for is empty."""
    x = x.contiguous()
    results = _results(x, fmt, row, column)
    first, second = codes_launches(x.shape, x.dtype, fmt, row, column, casts())
    parts = x.new_empty(second.constants["PARTS"], dtype=torch.int32)
    given, (rows, columns) = gpu.as_bits(x), x.shape
    if first is not None:
        first.run(given, parts, parts, rows, columns, 1, 0)
    second.run(given, parts, rows, columns, *results)
    return results


@functools.lru_cache(gpu.LAUNCHES)
def codes_launches(
    shape: torch.Size, dtype: torch.dtype, fmt: BlockFormat, row: bool, column: bool, cast: bool
) -> tuple[Launch | None, Launch]:
    """Return the launches of `on_gpu`: of the largest magnitude, where one scale is for all, and after.

    With `cast` the GPU `casts`.
    """
    element = fmt.element
    assert isinstance(element, FloatFormat), "the kernel takes floats"
    whole = str(fmt.block) == "tensor"
    first = None
    if whole:
        first = gpu.amax_launch(shape, dtype, 0, False, False, turned=False, most=_PARTS)
    parts = first.constants["PARTS"] if first is not None else 1
    rows, columns = shape
    moved = rows * columns * dtype.itemsize
    for used, m, n in ((row, rows, columns), (column, columns, rows)):
        blocks = -(-n // (fmt.block.along or n))
        moved += used * (m * (n if whole else blocks * 33) + 4 * whole)
    tm, tn = _TILE
    grid = (-(-rows // tm), -(-columns // tn), 1)
    second = Launch(
        kernel="codes_kernel",
        signature={
            "x": "*i16" if dtype == torch.bfloat16 else "*fp32", "parts": "*i32", "M": "i32", "N": "i32",
            **{
                f"{side}_{part}": "*fp32" if part == "scales" and whole else "*u8"
                for side in ("row", "column")
                for part in ("codes", "scales")
            },
        },
        constants={
            "ROW": row, "COLUMN": column, "BLOCK": fmt.block.along or 1,
            "MANTISSA": element.mantissa_bits, "LOWEST": element.min_exponent + 127,
            "MAX": element.max, "TOP": element.max_exponent, "SCALE": gpu.scale_number(fmt), "CAST": cast,
            "STORED_BF16": dtype == torch.bfloat16, "PARTS": parts, "TM": tm, "TN": tn,
        },
        grid=grid,
        warps=_WARPS,
        minimum=moved + 4 * parts * whole,
        moved=moved + 4 * parts * whole * math.prod(grid),
    )  # fmt: skip
    return first, second


def casts() -> bool:
    """Whether the GPU at hand rounds float32 to 8-bit floats itself, in one step."""
    at_hand = torch.cuda.is_available() and not torch.version.hip
    return at_hand and torch.cuda.get_device_capability() >= (9, 0)


def _results(x: Tensor, fmt: BlockFormat, row: bool, column: bool) -> Four:
    """Return empty results of `quantize_both`; real or fake."""
    found: list[Tensor] = []
    whole = str(fmt.block) == "tensor"
    dtype = torch.float32 if whole else torch.uint8
    for used, m, n in ((row, *x.shape), (column, *reversed(x.shape))):
        along = 1 if whole else fmt.block.along or n
        blocks = (n + along - 1) // along
        scales = (1, 1) if whole else (m, blocks)
        found.append(x.new_empty((m, blocks * along) if used else (0,), dtype=torch.uint8))
        found.append(x.new_empty(scales if used else (0,), dtype=dtype))
    return tuple(found)  # type: ignore[return-value]
