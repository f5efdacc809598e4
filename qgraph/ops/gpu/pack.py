"""NVFP4 as a matrix unit takes it: codes two to a byte, swizzled scales, both orientations at once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph.formats import parse_format
from qgraph.ops.gpu.amax import amax_launch
from qgraph.ops.gpu.language import jit, tl
from qgraph.ops.gpu.launch import LAUNCHES, Launch, as_bits, sign_mask, why_not_triton
from qgraph.ops.gpu.parts import TWO_LEVEL, load_whole, quantize_tile, read, rotate
from qgraph.ops.machine import Machine
from qgraph.ops.work import Kernel, Quantize

NVFP4_FORMATS = ("e2m1/1x16/e4m3/fp32", "e2m1/16x16/e4m3/fp32")
POINTS = 16  # of a rotation before it
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# Of each side, along N and along M: format or nothing, whether it turns, whether it draws, its site.
Sides = tuple[tuple[str, bool, bool, int], tuple[str, bool, bool, int]]
_TILES = (128, 64)  # of a pack's program


@jit
def pack_tile(
    x, whole, r, k, rows, size, seed, site, signs, codes, scales,
    ROWS: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, POINTS: tl.constexpr,
    BF16: tl.constexpr, NOISE: tl.constexpr,
):  # fmt: skip
    """Store a tile's NVFP4 codes, two to a byte, and its swizzled scales.

    `r` [ROWS] numbers the tile's rows, of `rows`; `k` is the place of its first element, of `size`.
    """
    if POINTS > 1:
        x = rotate(x, signs, ROWS, ALONG, POINTS, BF16)
    chunks = k // 16 + tl.arange(0, ALONG // 16)
    count = tl.cdiv(size, 16)
    values, negative, _, byte = quantize_tile(
        x, whole, r.to(tl.int64), chunks.to(tl.int64), count, seed, site,
        ROWS, ALONG, ACROSS, 16, 1, 127, 6.0, 2, TWO_LEVEL, NOISE,
    )  # fmt: skip
    b = values.to(tl.int32, bitcast=True)
    code = tl.where(values < 1.0, (values * 2.0).to(tl.int32), (b >> 22) - 252)
    code = tl.where(values == values, code | tl.where(negative, 8, 0), 0)
    low, high = tl.split(tl.reshape(code, [ROWS, ALONG // 2, 2]))
    pairs = k // 2 + tl.arange(0, ALONG // 2)
    place = r[:, None].to(tl.int64) * (count * 8) + pairs[None, :]
    inside = (r < rows)[:, None] & (pairs < count * 8)[None, :]
    tl.store(codes + place, (low | (high << 4)).to(tl.uint8), inside)
    byte = tl.reshape(byte, [ROWS // ACROSS, 1, ALONG // 16])
    byte = tl.reshape(
        tl.broadcast_to(byte, [ROWS // ACROSS, ACROSS, ALONG // 16]), [ROWS, ALONG // 16]
    )
    byte = tl.where((r < rows)[:, None] & (chunks < count)[None, :], byte, 0)
    wide = tl.cdiv(count, 4)
    tile = (r // 128)[:, None] * wide + (chunks // 4)[None, :]
    within = ((r % 32) * 16 + (r % 128) // 32 * 4)[:, None] + (chunks % 4)[None, :]
    held = (r < tl.cdiv(rows, 128) * 128)[:, None] & (chunks < wide * 4)[None, :]
    tl.store(scales + tile.to(tl.int64) * 512 + within, byte.to(tl.uint8), held)


@jit(do_not_specialize=["signs", "seed", "row_site", "column_site"])
def pack_kernel(
    x, parts, turned, M, N, signs, seed, row_site, column_site,
    row_codes, row_scales, row_whole, column_codes, column_scales, column_whole,
    ROW: tl.constexpr, COLUMN: tl.constexpr, ACROSS: tl.constexpr, ROW_POINTS: tl.constexpr,
    COLUMN_POINTS: tl.constexpr, BF16: tl.constexpr, ROW_NOISE: tl.constexpr,
    COLUMN_NOISE: tl.constexpr, STORED_BF16: tl.constexpr, PARTS: tl.constexpr,
    TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """Store x [M, N] as NVFP4 along N (row) and along M (column), from one read.

    A rotated side takes its largest magnitude from `turned`, the other from `parts`.
    """
    first = tl.program_id(0) + tl.program_id(1) == 0
    m = tl.program_id(0) * TM + tl.arange(0, TM)
    n = tl.program_id(1) * TN + tl.arange(0, TN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    v = read(x, m[:, None].to(tl.int64) * N + n[None, :], inside, STORED_BF16)
    if ROW:
        whole = load_whole(turned if ROW_POINTS > 1 else parts, PARTS)
        if first:
            tl.store(row_whole, tl.div_rn(whole, 2688.0))
        pack_tile(
            v, whole, m, tl.program_id(1) * TN, M, N, seed, row_site, signs, row_codes, row_scales,
            TM, TN, ACROSS, ROW_POINTS, BF16, ROW_NOISE,
        )  # fmt: skip
    if COLUMN:
        whole = load_whole(turned if COLUMN_POINTS > 1 else parts, PARTS)
        if first:
            tl.store(column_whole, tl.div_rn(whole, 2688.0))
        pack_tile(
            tl.trans(v), whole, n, tl.program_id(0) * TM, N, M, seed, column_site, signs,
            column_codes, column_scales, TN, TM, ACROSS, COLUMN_POINTS, BF16, COLUMN_NOISE,
        )  # fmt: skip


def pack_on_gpu(x: Tensor, sides: Sides, signs: str, output: str, seed: int) -> Six:
    """Return both sides of x [M, N]: see `qgraph.ops.packed`."""
    x = x.contiguous()
    results = empty_sides(x, sides)
    first, second = pack_launches(x.shape, x.dtype, sides, len(signs), output)
    parts = torch.empty(2, first.constants["PARTS"], dtype=torch.int32, device=x.device)
    rows, columns = x.shape
    mask = sign_mask(signs)
    given = as_bits(x)
    first.run(given, parts[0], parts[1], rows, columns, 1, mask)
    sites = [site & 0xFFFFFFFF for *_, site in sides]
    second.run(given, parts[0], parts[1], rows, columns, mask, seed & 0xFFFFFFFF, *sites, *results)
    return results


@functools.lru_cache(LAUNCHES)
def pack_launches(
    shape: torch.Size, dtype: torch.dtype, sides: Sides, points: int, output: str
) -> tuple[Launch, Launch]:
    """Return the launches of `pack`: of the largest magnitudes, and of everything else."""
    rows, columns = shape
    (row, row_turns, row_draws, _), (column, column_turns, column_draws, _) = sides
    used = [side for side in sides if side[0]]
    turned = {i for i, side in enumerate(sides) if side[0] and side[1]}
    bf16 = output == "bf16" or dtype == torch.bfloat16
    first = amax_launch(
        shape, dtype, points, 1 in turned, bf16,
        plain=any(not side[1] for side in used), turned=bool(turned),
    )  # fmt: skip
    parts = first.constants["PARTS"]
    results = sum(
        side_bytes(m, n) for m, n, on in ((rows, columns, row), (columns, rows, column)) if on
    )
    # The scales are padded to whole tiles of 128 rows and 4 blocks: every one is written.
    tm, tn = _TILES
    grid = (-(-rows // tm), -(-columns // 128) * (128 // tn), 1)
    least = rows * columns * dtype.itemsize + results
    kinds = {
        "x": "*i16" if dtype == torch.bfloat16 else "*fp32", "parts": "*i32", "turned": "*i32",
        "M": "i32", "N": "i32", "signs": "i64", "seed": "i64", "row_site": "i64", "column_site": "i64",
    }  # fmt: skip
    for side in ("row", "column"):
        kinds |= {f"{side}_codes": "*u8", f"{side}_scales": "*u8", f"{side}_whole": "*fp32"}
    fmt = parse_format(used[0][0])
    second = Launch(
        kernel=pack_kernel,
        signature=kinds,
        constants={
            "ROW": bool(row), "COLUMN": bool(column), "ACROSS": fmt.block.across,
            "ROW_POINTS": points if row_turns else 1, "COLUMN_POINTS": points if column_turns else 1,
            "BF16": bf16, "ROW_NOISE": row_draws, "COLUMN_NOISE": column_draws,
            "STORED_BF16": dtype == torch.bfloat16, "PARTS": parts, "TM": tm, "TN": tn,
        },
        grid=grid,
        warps=8,
        minimum=least + 4 * parts,
        moved=least + 4 * parts * len(used) * grid[0] * grid[1],
    )  # fmt: skip
    return first, second


def side_bytes(rows: int, size: int) -> int:
    """Return the bytes of one side: codes, padded scales, the tensor scale."""
    blocks = -(-size // 16)
    return rows * blocks * 8 + -(-rows // 128) * -(-blocks // 4) * 512 + 4


def empty_sides(x: Tensor, sides: Sides) -> Six:
    """Return empty results of `pack`; real or fake."""
    found: list[Tensor] = []
    rows, columns = x.shape
    for (text, *_), m, n in zip(sides, (rows, columns), (columns, rows), strict=True):
        blocks = -(-n // 16)
        scales = -(-m // 128) * -(-blocks // 4) * 512
        found += [
            x.new_empty((m, blocks * 8) if text else (0,), dtype=torch.uint8),
            x.new_empty((scales,) if text else (0,), dtype=torch.uint8),
            x.new_empty(() if text else (0,), dtype=torch.float32),
        ]
    return tuple(found)  # type: ignore[return-value]


def _takes(work: Quantize, machine: Machine) -> str | None:
    if (why := why_not_triton(work, machine)) is not None:
        return why
    if str(work.format) not in NVFP4_FORMATS or work.rank != 2 or work.known:
        return f"no triton kernel packs {work.format}"
    usual = str(work.rounding) == ("stochastic" if work.draws else "nearest")
    if work.points not in (0, POINTS) or not usual:
        return "no triton kernel packs with this rounding or rotation"
    return None


TRITON_PACK = Kernel(
    name="triton packing",
    work=Quantize,
    wanted=("packed",),
    device="cuda",
    takes=_takes,
    run=pack_on_gpu,
    launches=pack_launches,
)
