"""NVFP4 as a matrix unit takes it: codes two to a byte, swizzled scales, both orientations at once.

    pack(x, row, column, ...) -> (codes, scales, tensor scale) along N, then along M

A side is a format's text, or nothing; `row` has blocks along the last axis of x [M, N], `column` along
the first. `nvfp4_mm` multiplies two sides.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import NEAREST, STOCHASTIC, parse_format
from qgraph.numerics import Noise, swizzle, unswizzle
from qgraph.ops import gpu
from qgraph.ops.gpu import Launch

PACK = (
    "pack(Tensor x, str row, bool row_turns, bool row_draws, int row_site, "
    "str column, bool column_turns, bool column_draws, int column_site, "
    "str signs, str output, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
MULTIPLY = (
    "nvfp4_mm(Tensor a, Tensor a_scales, Tensor a_whole, Tensor b, Tensor b_scales, Tensor b_whole, "
    "Tensor? bias, ScalarType dtype) -> Tensor"
)
FORMATS = ("e2m1/1x16/e4m3/fp32", "e2m1/16x16/e4m3/fp32")
_TILES = (128, 64)  # of a pack's program
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def pack(
    x: Tensor,
    row: str,
    row_turns: bool,
    row_draws: bool,
    row_site: int,
    column: str,
    column_turns: bool,
    column_draws: bool,
    column_site: int,
    signs: str,
    output: str,
    seed: Tensor | None,
) -> Six:
    """Quantize x [M, N] in one or both orientations, rotated along the blocks where a side turns.

    Each side is what `numerics.quantize` stores: codes [M, N'/2] and [N, M'/2] (N' and M' whole blocks
    of 16), scales of every row swizzled, tensor scale []. A side that is not asked for is empty.
    """
    drawn = int(seed.item()) if seed is not None else 0
    sides = (
        (row, row_turns, row_draws, row_site),
        (column, column_turns, column_draws, column_site),
    )
    if gpu.supports(x):
        return _on_gpu(x.contiguous(), sides, signs, output, drawn)
    found: list[Tensor] = []
    for axis, (text, turns, draws, site) in zip((-1, -2), sides, strict=True):
        noise = Noise(seed=drawn, site=site) if draws else None
        found += _define(x, text, axis, signs if turns else "", output, noise)
    return tuple(found)  # type: ignore[return-value]


def _define(
    x: Tensor, text: str, axis: int, signs: str, output: str, noise: Noise | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one side by its definition."""
    if not text:
        return _empty(x, torch.uint8), _empty(x, torch.uint8), _empty(x, torch.float32)
    y = numerics.hadamard(x, signs, axis, output) if signs else x
    fmt = parse_format(text)
    rounding = NEAREST if noise is None else STOCHASTIC
    codes, scales, whole = numerics.quantize(y, fmt, axis, noise, rounding)
    rows = x.shape[-2] if axis == -1 else x.shape[-1]
    each = scales.view(torch.uint8).repeat_interleave(fmt.block.across or 1, 0)[:rows]
    return codes[:rows].contiguous(), swizzle(each), whole


Sides = tuple[tuple[str, bool, bool, int], tuple[str, bool, bool, int]]


def _on_gpu(x: Tensor, sides: Sides, signs: str, output: str, seed: int) -> Six:
    results = _results(x, sides)
    first, second = pack_launches(x.shape, x.dtype, sides, len(signs), output)
    parts = torch.empty(2, first.constants["PARTS"], dtype=torch.int32, device=x.device)
    rows, columns = x.shape
    mask = gpu.sign_mask(signs)
    given = gpu.as_bits(x)
    first.run(given, parts[0], parts[1], rows, columns, 1, mask)
    sites = [site & 0xFFFFFFFF for *_, site in sides]
    second.run(given, parts[0], parts[1], rows, columns, mask, seed & 0xFFFFFFFF, *sites, *results)
    return results


@functools.lru_cache(gpu.LAUNCHES)
def pack_launches(
    shape: torch.Size, dtype: torch.dtype, sides: Sides, points: int, output: str
) -> tuple[Launch, Launch]:
    """Return the launches of `pack`: of the largest magnitudes, and of everything else."""
    rows, columns = shape
    (row, row_turns, row_draws, _), (column, column_turns, column_draws, _) = sides
    used = [side for side in sides if side[0]]
    turned = {i for i, side in enumerate(sides) if side[0] and side[1]}
    bf16 = output == "bf16" or dtype == torch.bfloat16
    first = gpu.amax_launch(
        shape, dtype, points, 1 in turned, bf16,
        plain=any(not side[1] for side in used), turned=bool(turned),
    )  # fmt: skip
    parts = first.constants["PARTS"]
    results = sum(
        _side_bytes(m, n) for m, n, on in ((rows, columns, row), (columns, rows, column)) if on
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
        kernel="pack_kernel",
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


def _side_bytes(rows: int, size: int) -> int:
    blocks = -(-size // 16)
    return rows * blocks * 8 + -(-rows // 128) * -(-blocks // 4) * 512 + 4


def _results(x: Tensor, sides: Sides) -> Six:
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


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((0,), dtype=dtype)


def pack_fake(
    x: Tensor, row: str, row_turns: bool, row_draws: bool, row_site: int, column: str,
    column_turns: bool, column_draws: bool, column_site: int, signs: str, output: str,
    seed: Tensor | None,
) -> Six:  # fmt: skip
    """Return empty results of `pack`."""
    return _results(x, ((row, row_turns, row_draws, 0), (column, column_turns, column_draws, 0)))


def nvfp4_mm(
    a: Tensor, a_scales: Tensor, a_whole: Tensor, b: Tensor, b_scales: Tensor, b_whole: Tensor,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return a @ b.T (+ bias) of two sides of `pack`: [M, K'/2] and [N, K'/2] -> [M, N] of `dtype`.

    Sums are of float32; the tensor scales are multiplied in once, after the sum.
    """
    if a.device.type == "cuda" and gpu.why_unavailable() is None:
        out = a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
        launch = product_launch(a.shape, b.shape, dtype, bias is not None)
        left, right = a_scales.view(torch.float8_e4m3fn), b_scales.view(torch.float8_e4m3fn)
        launch.run(
            a, left, a_whole, b, right, b_whole, bias if bias is not None else out, out,
            a.shape[0], b.shape[0], a.shape[1],
        )  # fmt: skip
        return out
    sides = []
    for codes, scales in ((a, a_scales), (b, b_scales)):
        rows, size = codes.shape[0], codes.shape[1] * 2
        stored = unswizzle(scales, rows, size // 16).view(torch.float8_e4m3fn)
        one = torch.ones((), device=a.device)
        fmt, shape = parse_format(FORMATS[0]), torch.Size((rows, size))
        sides.append(numerics.dequantize(codes, stored, one, fmt, shape, -1, torch.float32))
    found = (sides[0] @ sides[1].mT) * (a_whole * b_whole)
    return (found if bias is None else found + bias.float()).to(dtype)


def product_launch(a: torch.Size, b: torch.Size, dtype: torch.dtype, bias: bool) -> Launch:
    """Return the launch of `nvfp4_mm`; its bytes are those of operands and result, each once."""
    return _product_launch(a, b, dtype, bias, _product_tile())


@functools.lru_cache(gpu.LAUNCHES)
def _product_launch(
    a: torch.Size, b: torch.Size, dtype: torch.dtype, bias: bool, tile: tuple[int, int, int]
) -> Launch:
    (m, k2), n, (tm, tn, tk) = a, b[0], tile
    kinds = {"*fp32": torch.float32, "*bf16": torch.bfloat16}
    name = next(key for key, value in kinds.items() if value == dtype)
    size = _side_bytes(m, 2 * k2) + _side_bytes(n, 2 * k2) + m * n * dtype.itemsize
    return Launch(
        kernel="product_kernel",
        signature={
            "a": "*u8", "a_scales": "*fp8e4nv", "a_whole": "*fp32", "b": "*u8", "b_scales": "*fp8e4nv",
            "b_whole": "*fp32", "bias": name, "out": name, "M": "i32", "N": "i32", "K2": "i32",
        },
        constants={"BIAS": bias, "TM": tm, "TN": tn, "TK": tk},
        grid=(-(-m // tm) * -(-n // tn), 1, 1),
        warps=8,
        minimum=size,
        moved=size,
        flops=4 * m * n * k2,
    )  # fmt: skip


def _product_tile() -> tuple[int, int, int]:
    """Return rows, columns and summed elements of a product's program on the GPU at hand.

    GPUs of capability 12 sum in registers, not in a memory of the matrix unit: larger tiles spill.
    """
    small = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 12
    return (64, 64, 128) if small else (128, 128, 128)


def nvfp4_mm_fake(
    a: Tensor, a_scales: Tensor, a_whole: Tensor, b: Tensor, b_scales: Tensor, b_whole: Tensor,
    bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return an empty result of `nvfp4_mm`."""
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)
