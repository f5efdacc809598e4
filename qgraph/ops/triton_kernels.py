"""The GPU lowering's kernels, in Triton: bit for bit what `qgraph.numerics` defines.

See `triton_parts` for how a tile is seen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qgraph.ops.triton_parts import (
    TWO_LEVEL,
    WHOLE,
    bits_of,
    load_whole,
    nearest,
    quantize_tile,
    read,
    rotate,
    round_bf16,
    scale_tile,
    tensor_scales,
)


@triton.jit(do_not_specialize=["signs"])
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


@triton.jit(do_not_specialize=["signs", "seed", "site"])
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


@triton.jit
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


@triton.jit(do_not_specialize=["signs", "seed", "row_site", "column_site"])
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


@triton.jit
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


@triton.jit
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


@triton.jit
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


@triton.jit
def load_scales(scales, r, c, wide):
    """Load swizzled scales of rows `r` and blocks `c`: see `qgraph.numerics.storage.swizzle`."""
    tile = (r // 128)[:, None] * wide + (c // 4)[None, :]
    within = ((r % 32) * 16 + (r % 128) // 32 * 4)[:, None] + (c % 4)[None, :]
    return tl.load(scales + tile.to(tl.int64) * 512 + within)


@triton.jit
def product_kernel(
    a, a_scales, a_whole, b, b_scales, b_whole, bias, out, M, N, K2,
    BIAS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr,
):  # fmt: skip
    """Out [M, N] = a [M, 2·K2] @ b [N, 2·K2].T on NVFP4 codes, scales of tensor and bias applied once."""
    columns = tl.cdiv(N, TN)
    tile = tl.program_id(0)
    m = (tile // columns) * TM + tl.arange(0, TM)
    n = (tile % columns) * TN + tl.arange(0, TN)
    wide = tl.cdiv(K2, 32)
    held_m, held_n = m < M, n < N
    total = tl.zeros([TM, TN], tl.float32)
    for start in range(tl.cdiv(K2, TK // 2)):
        k = start * (TK // 2) + tl.arange(0, TK // 2)
        c = start * (TK // 16) + tl.arange(0, TK // 16)
        left = tl.load(
            a + m[:, None].to(tl.int64) * K2 + k[None, :],
            held_m[:, None] & (k < K2)[None, :],
            other=0,
        )
        right = tl.load(
            b + n[None, :].to(tl.int64) * K2 + k[:, None],
            held_n[None, :] & (k < K2)[:, None],
            other=0,
        )
        left_scales = load_scales(
            a_scales, tl.where(held_m, m, 0), tl.minimum(c, wide * 4 - 1), wide
        )
        right_scales = load_scales(
            b_scales, tl.where(held_n, n, 0), tl.minimum(c, wide * 4 - 1), wide
        )
        total = tl.dot_scaled(left, left_scales, "e2m1", right, right_scales, "e2m1", total)
    found = total * (tl.load(a_whole) * tl.load(b_whole))
    if BIAS:
        found = found + tl.load(bias + n, held_n, other=0.0).to(tl.float32)[None, :]
    place = m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), held_m[:, None] & held_n[None, :])
