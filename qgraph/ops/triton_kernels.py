"""The GPU lowering's kernels, in Triton: bit for bit what `qgraph.numerics` defines.

A tensor is seen as [batch, M, N]. A tile is [rows, along], blocks lying along its last axis: for
blocks along M the tile is loaded transposed. Roundings are by bits and divisions are IEEE's, so that
every GPU, and Triton's interpreter, gives the same numbers. Magnitudes are compared as integers:
NaN is the largest. Compile without contraction into FMA.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl

FLT_MAX = tl.constexpr(3.4028234663852886e38)
TWO_LEVEL, CEIL, FLOOR, WHOLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def bits_of(x):
    """Return the bits of the magnitude of a float32."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def read(x, place, inside, BF16: tl.constexpr):
    """Load float32, or bfloat16 that is given as its bits, int16."""
    if BF16:
        high = tl.load(x + place, inside, other=0).to(tl.int32) << 16
        return high.to(tl.float32, bitcast=True)
    return tl.load(x + place, inside, other=0.0)


@triton.jit
def round_bf16(x):
    """Round float32 to the nearest bfloat16, ties to even, in float32."""
    b = x.to(tl.int32, bitcast=True)
    rounded = (b + 0x7FFF + ((b >> 16) & 1)) & -65536
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def butterfly(y, COUNT: tl.constexpr, POINTS: tl.constexpr, D: tl.constexpr):
    """Replace each pair (low, high) of elements D apart by (low + high, low - high)."""
    pairs = tl.reshape(y, [COUNT, POINTS // (2 * D), 2, D])
    low, high = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    both = tl.permute(tl.join(low + high, low - high), (0, 1, 3, 2))
    return tl.reshape(both, [COUNT, POINTS])


@triton.jit
def rotate(
    x, signs, ROWS: tl.constexpr, ALONG: tl.constexpr, POINTS: tl.constexpr, BF16: tl.constexpr
):
    """Rotate each chunk of POINTS elements along the last axis; bit i of `signs` negates element i."""
    y = tl.reshape(x, [ROWS * ALONG // POINTS, POINTS])
    index = tl.arange(0, POINTS)
    y = y * (1 - 2 * ((signs >> index) & 1)).to(tl.float32)[None, :]
    norm: tl.constexpr = POINTS**-0.5
    for step in tl.static_range(8):
        if (1 << step) < POINTS:
            y = butterfly(y, ROWS * ALONG // POINTS, POINTS, 1 << step)
    y = y * norm
    if BF16:
        y = round_bf16(y)
    return tl.reshape(y, [ROWS, ALONG])


@triton.jit
def scales_of(span, whole, MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr):
    """Return (encode, decode, byte) of blocks whose magnitudes have the bits `span`.

    `whole` is the tensor's largest magnitude. TOP is the exponent of MAX. Powers of two are exact, so
    multiplying by their inverse is dividing by them.
    """
    amax = span.to(tl.float32, bitcast=True)
    if SCALE == TWO_LEVEL:
        bound: tl.constexpr = MAX * 448.0
        top = tl.div_rn(bound, whole)
        top = tl.where(top > FLT_MAX, FLT_MAX, top)
        top = tl.where((whole == 0) | (top == 0), 1.0, top)
        s = amax * (top * (1.0 / MAX))
        s = tl.where(s > 448.0, 448.0, s)
        s = nearest(s, 3, 121)
        b = s.to(tl.int32, bitcast=True)
        byte = tl.where(s < 0.015625, (s * 512.0).to(tl.int32), (b >> 20) - 960)
        byte = tl.where(s == s, byte, 127)
        encode = tl.div_rn(1.0, s * tl.div_rn(1.0, top))
        encode = tl.where(encode > FLT_MAX, FLT_MAX, encode)
        return encode, s, byte
    if SCALE == WHOLE:
        usable = (amax != 0) & (span != 0x7F800000)
        encode = tl.div_rn(MAX, amax)
        encode = tl.where(encode > FLT_MAX, FLT_MAX, encode)
        encode = tl.where(usable, encode, 1.0)
        return encode, tl.div_rn(1.0, encode), span
    ratio = span
    if SCALE == CEIL:
        inverse: tl.constexpr = 1.0 / MAX
        ratio = (amax * inverse).to(tl.int32, bitcast=True)
    e, mantissa = ratio >> 23, ratio & 0x7FFFFF
    if SCALE == CEIL:
        byte = tl.where(e == 0, (mantissa > 0x400000).to(tl.int32), e + (mantissa > 0).to(tl.int32))
    else:
        byte = e - TOP
    byte = tl.minimum(tl.maximum(byte, 0), 254)
    bad = span >= 0x7F800000
    decode = tl.where(byte == 0, 0x00400000, byte << 23).to(tl.float32, bitcast=True)
    other = 254 - byte
    encode = tl.where(other == 0, 0x00400000, other << 23).to(tl.float32, bitcast=True)
    nan = tl.where(bad, 0x7FC00000, 0).to(tl.float32, bitcast=True)
    encode, decode = tl.where(bad, nan, encode), tl.where(bad, nan, decode)
    return encode, decode, tl.where(bad, 255, byte)


@triton.jit
def nearest(a, MANTISSA: tl.constexpr, LOWEST: tl.constexpr):
    """Round magnitudes to MANTISSA bits, ties to even; LOWEST is the biased exponent of subnormals."""
    e = tl.maximum(a.to(tl.int32, bitcast=True) >> 23, LOWEST)
    c = ((e + 23 - MANTISSA) << 23).to(tl.float32, bitcast=True)
    return (a + c) - c


@triton.jit
def stochastic(a, noise, MANTISSA: tl.constexpr, LOWEST: tl.constexpr):
    """Round magnitudes up with the probability of their distance; noise in [0, 1)."""
    e = tl.maximum(a.to(tl.int32, bitcast=True) >> 23, LOWEST) - MANTISSA
    step = (e << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - e) << 23).to(tl.float32, bitcast=True)
    return tl.where(a == a, tl.floor(a * inverse + noise) * step, a)


@triton.jit
def noise_of(rows, chunks, count, seed, site, ROWS: tl.constexpr, ALONG: tl.constexpr):
    """Return a byte over 256 for each element of a tile: see `qgraph.numerics.random_bits`.

    Shapes: rows [ROWS] int64, chunks [ALONG / 16], count (of chunks in a row) -> [ROWS, ALONG].
    """
    counter = rows[:, None] * count + chunks[None, :]
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    key0, key1 = zero + seed.to(tl.uint32), zero + site.to(tl.uint32)
    w0, w1, w2, w3 = philox_impl(low, high, zero, zero, key0, key1, 10)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [ROWS, ALONG / 16, 2, 2]: w0 w1 w2 w3
    words = tl.reshape(words, [ROWS * ALONG // 4, 1])
    shifts = (tl.arange(0, 4) * 8)[None, :].to(tl.uint32)
    bytes = (words >> shifts) & 255
    return tl.reshape(bytes, [ROWS, ALONG]).to(tl.float32) * 0.00390625


@triton.jit
def quantize_tile(
    x, whole, rows, chunks, count, seed, site,
    ROWS: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr,
    MANTISSA: tl.constexpr, LOWEST: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr,
    SCALE: tl.constexpr, NOISE: tl.constexpr,
):  # fmt: skip
    """Return (rounded magnitudes, negative, decode, byte): [ROWS, ALONG] twice, then a scale a block.

    Scales are [ROWS / ACROSS, ALONG / BLOCK].
    """
    if SCALE == WHOLE:
        span = bits_of(tl.zeros([ROWS // ACROSS, ALONG // BLOCK], tl.float32) + whole)
    else:
        blocks = tl.reshape(bits_of(x), [ROWS // ACROSS, ACROSS, ALONG // BLOCK, BLOCK])
        span = tl.max(tl.max(blocks, 3), 1)
    encode, decode, byte = scales_of(span, whole, MAX, TOP, SCALE)
    tiles = tl.reshape(x, [ROWS // ACROSS, ACROSS, ALONG // BLOCK, BLOCK])
    scaled = tl.reshape(tiles * encode[:, None, :, None], [ROWS, ALONG])
    a = bits_of(scaled).to(tl.float32, bitcast=True)
    a = tl.where(a > MAX, MAX, a)
    if NOISE:
        noise = noise_of(rows, chunks, count, seed, site, ROWS, ALONG)
        r = stochastic(a, noise, MANTISSA, LOWEST)
    else:
        r = nearest(a, MANTISSA, LOWEST)
    r = tl.where(r > MAX, MAX, r)
    return r, scaled.to(tl.int32, bitcast=True) < 0, decode, byte


@triton.jit
def load_whole(parts, PARTS: tl.constexpr):
    """Return the largest of an amax's partial maxima, as float32."""
    found = tl.load(parts + tl.arange(0, PARTS))
    return tl.max(found, 0).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["signs"])
def amax_kernel(
    x, parts, turned, M, N, batch, signs, POINTS: tl.constexpr, ALONG_M: tl.constexpr, BF16: tl.constexpr,
    STORED_BF16: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr, PARTS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
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
    if SCALE == TWO_LEVEL or SCALE == WHOLE:
        whole = load_whole(parts, PARTS)
    number = b * rows + r.to(tl.int64)
    chunks = (k // 16 + tl.arange(0, K // 16)).to(tl.int64)
    values, negative, decode, byte = quantize_tile(
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
    values, negative, decode, byte = quantize_tile(
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
    COLUMN_NOISE: tl.constexpr, STORED_BF16: tl.constexpr, PARTS: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """X [M, N] as NVFP4 along N (row) and along M (column), from one read.

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
