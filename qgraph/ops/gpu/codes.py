"""Codes of 8 bits for a GPU's matrix unit: both orientations of a matrix from one read.

Each side is what `quantize` stores: bit for bit what `qgraph.numerics` defines.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from qgraph.formats import NEAREST, BlockFormat, FloatFormat, Rounding
from qgraph.ops.gpu.amax import amax_launch
from qgraph.ops.gpu.language import jit, tl
from qgraph.ops.gpu.launch import (
    LAUNCHES,
    Launch,
    as_bits,
    fuses_on_gpu,
    scale_number,
    why_not_triton,
)
from qgraph.ops.gpu.parts import (
    WHOLE,
    bits_of,
    load_whole,
    nearest,
    read,
    scale_tile,
    tensor_scales,
)
from qgraph.ops.machine import Machine, at_hand
from qgraph.ops.work import How, Kernel, Quantize

Four = tuple[Tensor, Tensor, Tensor, Tensor]
_TILE, _WARPS, _PARTS = (
    (128, 64),
    4,
    1024,
)  # the fastest of those tried on an H200, with its few spills


@jit
def codes_of(
    x, whole, ROWS: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr, MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Return a tile's codes of 8 bits, to nearest, and a scale a block: [ROWS, ALONG / BLOCK].

    With CAST by the GPU's own conversion, `cvt.rn.satfinite`: Triton's interpreter rounds otherwise.
    """
    scaled, _, byte = scale_tile(
        x, whole, ROWS, ALONG, ROWS if SCALE == WHOLE else 1, BLOCK, MAX, TOP, SCALE
    )
    if CAST:
        if MANTISSA == 3:
            code = scaled.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        else:
            code = scaled.to(tl.float8e5).to(tl.uint8, bitcast=True)
    else:
        a = bits_of(scaled).to(tl.float32, bitcast=True)
        a = nearest(tl.where(a > MAX, MAX, a), MANTISSA, LOWEST)
        smallest: tl.constexpr = 2.0 ** (LOWEST - 127)
        fields = (bits_of(a) >> (23 - MANTISSA)) - ((LOWEST - 1) << MANTISSA)
        code = tl.where(a < smallest, (a * (2.0**MANTISSA / smallest)).to(tl.int32), fields)
        code = (code | tl.where(scaled.to(tl.int32, bitcast=True) < 0, 128, 0)).to(tl.uint8)
    return tl.where(scaled == scaled, code, 127 if MANTISSA == 3 else 126).to(tl.uint8), byte


@jit
def store_codes(
    code, byte, r, k, rows, size, codes, scales, ALONG: tl.constexpr, BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """Store codes of rows `r`, from place `k` on, each row filled up to whole blocks, and scales."""
    places = k + tl.arange(0, ALONG)
    held = (r < rows)[:, None]
    if SCALE == WHOLE:
        length = size
    else:
        count = tl.cdiv(size, BLOCK)
        length = count * BLOCK
        c = k // BLOCK + tl.arange(0, ALONG // BLOCK)
        at = r[:, None].to(tl.int64) * count + c[None, :]
        tl.store(scales + at, byte.to(tl.uint8), held & (c < count)[None, :])
    at = r[:, None].to(tl.int64) * length + places[None, :]
    code = tl.where((places < size)[None, :], code, 0)  # also beside a scale that is NaN
    tl.store(codes + at, code, held & (places < length)[None, :])


@jit
def codes_kernel(
    x, parts, M, N, row_codes, row_scales, column_codes, column_scales, ROW: tl.constexpr,
    COLUMN: tl.constexpr, BLOCK: tl.constexpr, MANTISSA: tl.constexpr, LOWEST: tl.constexpr,
    MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr, CAST: tl.constexpr,
    STORED_BF16: tl.constexpr, PARTS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """Store x [M, N] as 8-bit codes along N (row) and along M (column), from one read."""
    m = tl.program_id(0) * TM + tl.arange(0, TM)
    n = tl.program_id(1) * TN + tl.arange(0, TN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    v = read(x, m[:, None].to(tl.int64) * N + n[None, :], inside, STORED_BF16)
    whole = 1.0
    if SCALE == WHOLE:
        whole = load_whole(parts, PARTS)
        if tl.program_id(0) + tl.program_id(1) == 0:
            _, decode = tensor_scales(whole, MAX)
            if ROW:
                tl.store(row_scales, decode)
            if COLUMN:
                tl.store(column_scales, decode)
    r, k = tl.program_id(0) * TM, tl.program_id(1) * TN
    if SCALE == WHOLE:  # the same codes whichever way they lie
        code, byte = codes_of(v, whole, TM, TN, TN, MANTISSA, LOWEST, MAX, TOP, SCALE, CAST)
        if ROW:
            store_codes(code, byte, m, k, M, N, row_codes, row_scales, TN, BLOCK, SCALE)
        if COLUMN:
            other = tl.trans(code)
            store_codes(other, byte, n, r, N, M, column_codes, column_scales, TM, BLOCK, SCALE)
    else:
        if ROW:
            code, byte = codes_of(v, whole, TM, TN, BLOCK, MANTISSA, LOWEST, MAX, TOP, SCALE, CAST)
            store_codes(code, byte, m, k, M, N, row_codes, row_scales, TN, BLOCK, SCALE)
        if COLUMN:
            other, byte = codes_of(
                tl.trans(v), whole, TN, TM, BLOCK, MANTISSA, LOWEST, MAX, TOP, SCALE, CAST
            )
            store_codes(other, byte, n, r, N, M, column_codes, column_scales, TM, BLOCK, SCALE)


def codes_on_gpu(x: Tensor, fmt: BlockFormat, *, row: bool, column: bool) -> Four:
    """Return codes and scales of x [M, N] along its last axis, then its first; empty if not asked for."""
    x = x.contiguous()
    results = empty_codes(x, fmt, row, column)
    first, second = codes_launches(x.shape, x.dtype, fmt, row, column, casts(at_hand("cuda")))
    parts = x.new_empty(second.constants["PARTS"], dtype=torch.int32)
    given, (rows, columns) = as_bits(x), x.shape
    if first is not None:
        first.run(given, parts, parts, rows, columns, 1, 0)
    second.run(given, parts, rows, columns, *results)
    return results


@functools.lru_cache(LAUNCHES)
def codes_launches(
    shape: torch.Size, dtype: torch.dtype, fmt: BlockFormat, row: bool, column: bool, cast: bool
) -> tuple[Launch | None, Launch]:
    """Return the launches of `codes_on_gpu`: of the largest magnitude, where one scale is for all, and after.

    With `cast` the GPU rounds itself: see `casts`.
    """
    element = fmt.element
    assert isinstance(element, FloatFormat), "the kernel takes floats"
    whole = str(fmt.block) == "tensor"
    first = None
    if whole:
        first = amax_launch(shape, dtype, 0, False, False, turned=False, most=_PARTS)
    parts = first.constants["PARTS"] if first is not None else 1
    rows, columns = shape
    moved = rows * columns * dtype.itemsize
    for used, m, n in ((row, rows, columns), (column, columns, rows)):
        blocks = -(-n // (fmt.block.along or n))
        moved += used * (m * (n if whole else blocks * 33) + 4 * whole)
    tm, tn = _TILE
    grid = (-(-rows // tm), -(-columns // tn), 1)
    second = Launch(
        kernel=codes_kernel,
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
            "MAX": element.max, "TOP": element.max_exponent, "SCALE": scale_number(fmt), "CAST": cast,
            "STORED_BF16": dtype == torch.bfloat16, "PARTS": parts, "TM": tm, "TN": tn,
        },
        grid=grid,
        warps=_WARPS,
        minimum=moved + 4 * parts * whole,
        moved=moved + 4 * parts * whole * math.prod(grid),
    )  # fmt: skip
    return first, second


def casts(machine: Machine) -> bool:
    """Whether the GPU rounds float32 to 8-bit floats itself, in one step."""
    return not machine.hip and machine.capability >= (9, 0)


def empty_codes(x: Tensor, fmt: BlockFormat, row: bool, column: bool) -> Four:
    """Return empty results of `codes_on_gpu`; real or fake."""
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


def _takes(work: Quantize, machine: Machine) -> str | None:
    if (why := why_not_triton(work, machine)) is not None:
        return why
    if work.rounding != NEAREST or work.draws or work.named:
        return f"no triton kernel for codes rounded {work.rounding} by name"
    fits = work.rank == 2 and not work.known and not work.points
    return None if fits and _stores(work.format) else f"no triton kernel for codes of {work.format}"


def _stores(fmt: BlockFormat) -> bool:
    """Whether the kernel stores `fmt`: 8-bit floats with one scale a tensor or a power of two."""
    element, across = fmt.element, fmt.block.across
    if not isinstance(element, FloatFormat) or element.name not in ("e4m3", "e5m2"):
        return False
    fine = str(fmt.block) == "tensor" or (across == 1 and fmt.scale.kind == "power")
    return fine and fmt.scale.range.kind != "delayed" and fuses_on_gpu(fmt, NEAREST)


def _launches(
    shape: torch.Size,
    dtype: torch.dtype,
    fmt: BlockFormat,
    row: bool,
    column: bool,
    machine: Machine,
) -> tuple[Launch | None, Launch]:
    return codes_launches(shape, dtype, fmt, row, column, casts(machine))


def _run(x: Tensor, fmt: BlockFormat, _: Rounding, how: How) -> tuple[Tensor, Tensor, Tensor]:
    row = how.axis % 2 == 1
    found = codes_on_gpu(x, fmt, row=row, column=not row)
    return *(found[:2] if row else found[2:]), x.new_ones((), dtype=torch.float32)


def _run_both(x: Tensor, fmt: BlockFormat) -> Four:
    return codes_on_gpu(x, fmt, row=True, column=True)


TRITON_CODES = Kernel(
    name="triton codes",
    work=Quantize,
    wanted=("codes",),
    device="cuda",
    takes=_takes,
    run=_run,
    launches=_launches,
)
TRITON_BOTH = Kernel(
    name="triton codes, both ways",
    work=Quantize,
    wanted=("both",),
    device="cuda",
    takes=_takes,
    run=_run_both,
    launches=_launches,
)
