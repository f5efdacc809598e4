"""The largest magnitude of a tensor, or of the tensor rotated, on a GPU: the first of two launches."""

from __future__ import annotations

import math

import torch

from qgraph.ops.gpu.language import jit, tl
from qgraph.ops.gpu.launch import MAX_PARTS, POINTERS, TILE, Launch, count_parts
from qgraph.ops.gpu.parts import bits_of, read, rotate


@jit(do_not_specialize=["signs"])
def amax_kernel(
    x, parts, turned, M, N, batch, signs, POINTS: tl.constexpr, ALONG_M: tl.constexpr, BF16: tl.constexpr,
    STORED_BF16: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr, PARTS: tl.constexpr,
    TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """Partial maxima of |x| and of |x rotated|, as bits, from one read: PARTS programs write one each."""
    first = tl.program_id(0)
    across = tl.cdiv(N, TN)
    tiles = tl.cdiv(M, TM) * across
    plain = tl.zeros([TM, TN], tl.int32)
    other = tl.zeros([TM, TN], tl.int32)
    for index in range(first, tiles * batch, PARTS):
        b, tile = index // tiles, index % tiles
        m = (tile // across) * TM + tl.arange(0, TM)
        n = (tile % across) * TN + tl.arange(0, TN)
        inside = (m < M)[:, None] & (n < N)[None, :]
        place = b.to(tl.int64) * M * N + m[:, None].to(tl.int64) * N + n[None, :]
        v = read(x, place, inside, STORED_BF16)
        if PLAIN:
            plain = tl.maximum(plain, bits_of(v))
        if TURNED:
            if ALONG_M:
                y = tl.trans(rotate(tl.trans(v), signs, TN, TM, POINTS, BF16))
            else:
                y = rotate(v, signs, TM, TN, POINTS, BF16)
            other = tl.maximum(other, bits_of(y))
    if PLAIN:
        tl.store(parts + first, tl.max(tl.max(plain, 1), 0))
    if TURNED:
        tl.store(turned + first, tl.max(tl.max(other, 1), 0))


def amax_launch(
    shape: torch.Size,
    dtype: torch.dtype,
    points: int,
    by_column: bool,
    bf16: bool,
    *,
    plain: bool | None = None,
    turned: bool,
    most: int = MAX_PARTS,
) -> Launch:
    """Return the launch that finds partial maxima of a tensor, of the tensor rotated, or of both.

    `most` of them at the most: more are found sooner, but each program that follows reads them all.
    """
    plain = not turned if plain is None else plain
    parts = count_parts(shape, most)
    size = math.prod(shape) * dtype.itemsize + 4 * parts * (plain + turned)
    return Launch(
        kernel=amax_kernel,
        signature={
            "x": POINTERS[dtype], "parts": "*i32", "turned": "*i32", "M": "i32", "N": "i32",
            "batch": "i32", "signs": "i64",
        },
        constants={
            "POINTS": max(points, 1), "ALONG_M": by_column, "BF16": bf16,
            "STORED_BF16": dtype == torch.bfloat16, "PLAIN": plain,
            "TURNED": turned, "PARTS": parts, "TM": TILE, "TN": TILE,
        },
        grid=(parts, 1, 1),
        warps=4,
        minimum=size,
        moved=size,
    )  # fmt: skip
