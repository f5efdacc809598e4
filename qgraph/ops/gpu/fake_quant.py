"""Values of the float formats of the usual recipes on a GPU, rotated first or not, in one read or two."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import BlockFormat, FloatFormat, Rounding
from qgraph.numerics import Noise, check_axis
from qgraph.ops.gpu.amax import amax_launch
from qgraph.ops.gpu.language import jit, tl
from qgraph.ops.gpu.launch import (
    LAUNCHES,
    POINTERS,
    TILE,
    Launch,
    as_bits,
    batched,
    count_parts,
    fuses_on_gpu,
    scale_number,
    sign_mask,
    why_not_triton,
)
from qgraph.ops.gpu.parts import (
    TWO_LEVEL,
    WHOLE,
    load_whole,
    quantize_tile,
    read,
    rotate,
    round_bf16,
)
from qgraph.ops.machine import Machine
from qgraph.ops.work import How, Kernel, Quantize

MAX_POINTS = 64  # of a rotation that a tile holds


@jit(do_not_specialize=["signs", "seed", "site"])
def fake_quant_kernel(
    x, out, parts, M, N, signs, seed, site, POINTS: tl.constexpr, ALONG_M: tl.constexpr,
    BF16: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, MANTISSA: tl.constexpr,
    LOWEST: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr,
    NOISE: tl.constexpr, STORED_BF16: tl.constexpr, PARTS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """X [batch, M, N] (rotated and) quantized and dequantized; a rotated axis grows to whole chunks."""
    b = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * TM + tl.arange(0, TM)
    n = tl.program_id(1) * TN + tl.arange(0, TN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    v = read(x, b * M * N + m[:, None].to(tl.int64) * N + n[None, :], inside, STORED_BF16)
    if ALONG_M:
        v = tl.trans(v)
        r, k, rows, size = n, tl.program_id(0) * TM, N, M
    else:
        r, k, rows, size = m, tl.program_id(1) * TN, M, N
    R: tl.constexpr = TN if ALONG_M else TM
    K: tl.constexpr = TM if ALONG_M else TN
    if POINTS > 1:
        v = rotate(v, signs, R, K, POINTS, BF16)
        size = tl.cdiv(size, POINTS) * POINTS
    whole = 1.0
    if SCALE == TWO_LEVEL or SCALE == WHOLE:  # noqa: SIM109
        whole = load_whole(parts, PARTS)
    number = b * rows + r.to(tl.int64)
    chunks = (k // 16 + tl.arange(0, K // 16)).to(tl.int64)
    values, negative, decode, _ = quantize_tile(
        v, whole, number, chunks, tl.cdiv(size, 16), seed, site, R, K, ACROSS, BLOCK, MANTISSA,
        LOWEST, MAX, TOP, SCALE, NOISE,
    )  # fmt: skip
    sign = tl.where(negative, -2147483648, 0)
    signed = (values.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    tiles = tl.reshape(signed, [R // ACROSS, ACROSS, K // BLOCK, BLOCK]) * decode[:, None, :, None]
    found = tl.reshape(tiles, [R, K])
    if SCALE == TWO_LEVEL:
        found = found * tl.div_rn(whole, MAX * 448.0)
    if ALONG_M:
        found = tl.trans(found)
    M1 = size if ALONG_M else M
    N1 = N if ALONG_M else size
    place = b * M1 * N1 + m[:, None].to(tl.int64) * N1 + n[None, :]
    inside = (m < M1)[:, None] & (n < N1)[None, :]
    if STORED_BF16:
        high = (round_bf16(found).to(tl.int32, bitcast=True) >> 16).to(tl.int16)
        tl.store(out + place, high, inside)
    else:
        tl.store(out + place, found, inside)


def quantize_on_gpu(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None,
    signs: str = "",
    output: str = "bf16",
    amax: Tensor | None = None,
) -> Tensor:
    """See `qgraph.numerics.fake_quant`, of `x` rotated by `signs` if there are any; for what is fused."""
    check_axis(x, axis)
    x = x.contiguous()
    by_column = axis % x.dim() == x.dim() - 2
    first, second = fake_quant_launches(
        x.shape, x.dtype, fmt, by_column, noise is not None, len(signs), output, amax is not None
    )
    mask = sign_mask(signs)
    batch, rows, columns = batched(x.shape)
    if amax is not None:
        parts = amax.float().view(torch.int32).reshape(1)
    else:
        parts = torch.empty(count_parts(x.shape), dtype=torch.int32, device=x.device)
    given = as_bits(x)
    if first is not None:
        first.run(given, parts, parts, rows, columns, batch, mask)
    shape = [*x.shape]
    n = max(1, len(signs))
    shape[axis] = -(-shape[axis] // n) * n
    out = x.new_empty(shape)
    drawn = (noise.seed & 0xFFFFFFFF, noise.site & 0xFFFFFFFF) if noise else (0, 0)
    second.run(given, as_bits(out), parts, rows, columns, mask, *drawn)
    return out


@functools.lru_cache(LAUNCHES)
def fake_quant_launches(
    shape: torch.Size,
    dtype: torch.dtype,
    fmt: BlockFormat,
    by_column: bool,
    random: bool,
    points: int = 0,
    output: str = "bf16",
    known: bool = False,
) -> tuple[Launch | None, Launch]:
    """Return the launches of `quantize_on_gpu`: of the largest magnitude, if asked for, and after it."""
    element = fmt.element
    assert isinstance(element, FloatFormat), "the kernels take floats"
    scale = scale_number(fmt)
    batch, rows, columns = batched(shape)
    whole = scale in (0, 3)
    bf16 = output == "bf16" or dtype == torch.bfloat16
    parts = 1 if known else count_parts(shape)
    first = None
    if whole and not known:
        first = amax_launch(shape, dtype, points, by_column, bf16, turned=points > 1)
    along = columns if not by_column else rows
    grown = -(-along // points) * points if points > 1 else along
    size = math.prod(shape)
    width = dtype.itemsize
    grid = (-(-rows // TILE), -(-columns // TILE), batch)
    moved = width * (size + size // max(along, 1) * grown)
    second = Launch(
        kernel=fake_quant_kernel,
        signature={
            "x": POINTERS[dtype], "out": POINTERS[dtype], "parts": "*i32",
            "M": "i32", "N": "i32", "signs": "i64", "seed": "i64", "site": "i64",
        },
        constants={
            "POINTS": max(points, 1), "ALONG_M": by_column, "BF16": bf16,
            "ACROSS": TILE if scale == 3 else fmt.block.across,
            "BLOCK": TILE if scale == 3 else fmt.block.along,
            "MANTISSA": element.mantissa_bits, "LOWEST": element.min_exponent + 127,
            "MAX": element.max, "TOP": element.max_exponent, "SCALE": scale, "NOISE": random,
            "STORED_BF16": dtype == torch.bfloat16, "PARTS": parts, "TM": TILE, "TN": TILE,
        },
        grid=grid,
        warps=4,
        minimum=moved + 4 * parts * whole,
        moved=moved + 4 * parts * whole * math.prod(grid),
    )  # fmt: skip
    return first, second


def _takes(work: Quantize, machine: Machine) -> str | None:
    if work.points and not 2 <= work.points <= MAX_POINTS:
        return f"no triton kernel rotates by {work.points} points"
    return _takes_rotated(work, machine)


def _takes_rotated(work: Quantize, machine: Machine) -> str | None:
    if (why := why_not_triton(work, machine)) is not None:
        return why
    if fuses_on_gpu(work.format, work.rounding) and work.known != "blocks":
        return None
    rounded = "" if str(work.rounding) in ("nearest", "stochastic") else f" rounded {work.rounding}"
    return f"no triton kernel takes {work.format}{rounded}"


def _run(x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How) -> Tensor:
    noise = how.noise if rounding.random else None
    return quantize_on_gpu(x, fmt, how.axis, noise, how.signs, how.output, how.amax)


def _run_rotated(x: Tensor, fmt: BlockFormat, rounding: Rounding, how: How) -> Tensor:
    rotated = numerics.hadamard(x, how.signs, how.axis, how.output)
    return _run(rotated, fmt, rounding, how._replace(signs=""))


TRITON_VALUES = Kernel(
    name="triton",
    work=Quantize,
    wanted=("values",),
    device="cuda",
    takes=_takes,
    run=_run,
    launches=fake_quant_launches,
    special="triton kernels for floats in blocks of 16 or 32 or one tensor",
)
TRITON_AFTER_ROTATION = Kernel(
    name="triton, rotated by the reference",
    work=Quantize,
    wanted=("values",),
    device="cuda",
    takes=_takes_rotated,
    run=_run_rotated,
)
