"""Parts of the GPU's kernels, in Triton: rotation, scales and rounding of one tile.

A tensor is seen as [batch, M, N]. A tile is [rows, along], blocks lying along its last axis: for
blocks along M the tile is loaded transposed. Roundings are by bits and divisions are IEEE's, so that
every GPU, and Triton's interpreter, gives the same numbers. Magnitudes are compared as integers:
NaN is the largest. Compile without contraction into FMA.
"""

from __future__ import annotations

from qgraph.ops.gpu.language import jit, philox, tl

FLT_MAX = tl.constexpr(3.4028234663852886e38)
TWO_LEVEL, CEIL, FLOOR, WHOLE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@jit
def bits_of(x):
    """Return the bits of the magnitude of a float32."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@jit
def read(x, place, inside, BF16: tl.constexpr):
    """Load float32, or bfloat16 that is given as its bits, int16."""
    if BF16:
        v = (tl.load(x + place, inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        v = tl.load(x + place, inside, other=0.0)
    return v


@jit
def round_bf16(x):
    """Round float32 to the nearest bfloat16, ties to even, in float32."""
    b = x.to(tl.int32, bitcast=True)
    rounded = (b + 0x7FFF + ((b >> 16) & 1)) & -65536
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@jit
def butterfly(y, COUNT: tl.constexpr, POINTS: tl.constexpr, D: tl.constexpr):
    """Replace each pair (low, high) of elements D apart by (low + high, low - high)."""
    pairs = tl.reshape(y, [COUNT, POINTS // (2 * D), 2, D])
    low, high = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    both = tl.permute(tl.join(low + high, low - high), (0, 1, 3, 2))
    return tl.reshape(both, [COUNT, POINTS])


@jit
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


@jit
def two_level_scales(amax, whole, MAX: tl.constexpr):
    """Return (encode, decode, byte) of the NVFP4 rule: see `qgraph.numerics.scales.two_level`."""
    top = tl.div_rn(MAX * 448.0, whole)
    top = tl.where(top > FLT_MAX, FLT_MAX, top)
    top = tl.where((whole == 0) | (top == 0), 1.0, top)
    s = amax * (top * (1.0 / MAX))
    s = nearest(tl.where(s > 448.0, 448.0, s), 3, 121)
    field = (s.to(tl.int32, bitcast=True) >> 20) - 960
    byte = tl.where(s < 0.015625, (s * 512.0).to(tl.int32), field)
    encode = tl.div_rn(1.0, s * tl.div_rn(1.0, top))
    return tl.where(encode > FLT_MAX, FLT_MAX, encode), s, tl.where(s == s, byte, 127)


@jit
def tensor_scales(amax, MAX: tl.constexpr):
    """Return (encode, decode) of one float32 scale: see `qgraph.numerics.scales.full_precision`."""
    encode = tl.div_rn(MAX, amax)
    encode = tl.where(encode > FLT_MAX, FLT_MAX, encode)
    encode = tl.where((amax != 0) & (bits_of(amax) != 0x7F800000), encode, 1.0)
    decode = tl.div_rn(1.0, encode)
    return encode, tl.where(bits_of(amax) == 0x7F800000, float("nan"), decode)


@jit
def power_scales(span, MAX: tl.constexpr, TOP: tl.constexpr, UP: tl.constexpr):
    """Return (encode, decode, byte) of the MX rules: see `qgraph.numerics.scales.power_of_two`.

    Multiplying by the inverse of a power of two is dividing by it.
    """
    if UP:
        ratio = (span.to(tl.float32, bitcast=True) * (1.0 / MAX)).to(tl.int32, bitcast=True)
        e, mantissa = ratio >> 23, ratio & 0x7FFFFF
        byte = tl.where(e == 0, (mantissa > 0x400000).to(tl.int32), e + (mantissa > 0).to(tl.int32))
    else:
        byte = (span >> 23) - TOP
    byte = tl.minimum(tl.maximum(byte, 0), 254)
    bad = span >= 0x7F800000
    decode = tl.where(byte == 0, 0x00400000, byte << 23)
    encode = tl.where(byte == 254, 0x00400000, (254 - byte) << 23)
    decode = tl.where(bad, 0x7FC00000, decode).to(tl.float32, bitcast=True)
    encode = tl.where(bad, 0x7FC00000, encode).to(tl.float32, bitcast=True)
    return encode, decode, tl.where(bad, 255, byte)


@jit
def scales_of(span, whole, MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr):
    """Return (encode, decode, byte) of blocks whose magnitudes have the bits `span`.

    `whole` is the tensor's largest magnitude, TOP the exponent of MAX.
    """
    amax = span.to(tl.float32, bitcast=True)
    if SCALE == TWO_LEVEL:
        encode, decode, byte = two_level_scales(amax, whole, MAX)
    elif SCALE == WHOLE:
        encode, decode = tensor_scales(amax, MAX)
        byte = span
    else:
        encode, decode, byte = power_scales(span, MAX, TOP, SCALE == CEIL)
    return encode, decode, byte


@jit
def nearest(a, MANTISSA: tl.constexpr, LOWEST: tl.constexpr):
    """Round magnitudes to MANTISSA bits, ties to even; LOWEST is the biased exponent of subnormals."""
    e = tl.maximum(a.to(tl.int32, bitcast=True) >> 23, LOWEST)
    c = ((e + 23 - MANTISSA) << 23).to(tl.float32, bitcast=True)
    return (a + c) - c


@jit
def stochastic(a, noise, MANTISSA: tl.constexpr, LOWEST: tl.constexpr):
    """Round magnitudes up with the probability of their distance; noise in [0, 1)."""
    e = tl.maximum(a.to(tl.int32, bitcast=True) >> 23, LOWEST) - MANTISSA
    step = (e << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - e) << 23).to(tl.float32, bitcast=True)
    return tl.where(a == a, tl.floor(a * inverse + noise) * step, a)


@jit
def noise_bytes(rows, chunks, count, seed, site, ROWS: tl.constexpr, ALONG: tl.constexpr):
    """Return a byte over 256 for each element of a tile: see `qgraph.numerics.random_bits`.

    Shapes: rows [ROWS] int64, chunks [ALONG / 16], count (of chunks in a row) -> [ROWS, ALONG].
    """
    counter = rows[:, None] * count + chunks[None, :]
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    key0, key1 = zero + seed.to(tl.uint32), zero + site.to(tl.uint32)
    w0, w1, w2, w3 = philox(low, high, zero, zero, key0, key1, 10)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [ROWS, ALONG / 16, 2, 2]: w0 w1 w2 w3
    words = tl.reshape(words, [ROWS * ALONG // 4, 1])
    shifts = (tl.arange(0, 4) * 8)[None, :].to(tl.uint32)
    bytes = (words >> shifts) & 255
    return tl.reshape(bytes, [ROWS, ALONG]).to(tl.float32) * 0.00390625


@jit
def quantize_tile(
    x, whole, rows, chunks, count, seed, site,
    ROWS: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr,
    MANTISSA: tl.constexpr, LOWEST: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr,
    SCALE: tl.constexpr, NOISE: tl.constexpr,
):  # fmt: skip
    """Return (rounded magnitudes, negative, decode, byte): [ROWS, ALONG] twice, then a scale a block.

    Scales are [ROWS / ACROSS, ALONG / BLOCK].
    """
    scaled, decode, byte = scale_tile(x, whole, ROWS, ALONG, ACROSS, BLOCK, MAX, TOP, SCALE)
    a = bits_of(scaled).to(tl.float32, bitcast=True)
    a = tl.where(a > MAX, MAX, a)
    if NOISE:
        noise = noise_bytes(rows, chunks, count, seed, site, ROWS, ALONG)
        r = stochastic(a, noise, MANTISSA, LOWEST)
    else:
        r = nearest(a, MANTISSA, LOWEST)
    r = tl.where(r > MAX, MAX, r)
    return r, scaled.to(tl.int32, bitcast=True) < 0, decode, byte


@jit
def scale_tile(
    x, whole, ROWS: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr,
    MAX: tl.constexpr, TOP: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Return (x in units of its block's scale, decode, byte): [ROWS, ALONG], then a scale a block."""
    if SCALE == WHOLE:
        span = bits_of(tl.zeros([ROWS // ACROSS, ALONG // BLOCK], tl.float32) + whole)
    else:
        blocks = tl.reshape(bits_of(x), [ROWS // ACROSS, ACROSS, ALONG // BLOCK, BLOCK])
        span = tl.max(tl.max(blocks, 3), 1)
    encode, decode, byte = scales_of(span, whole, MAX, TOP, SCALE)
    tiles = tl.reshape(x, [ROWS // ACROSS, ACROSS, ALONG // BLOCK, BLOCK])
    return tl.reshape(tiles * encode[:, None, :, None], [ROWS, ALONG]), decode, byte


@jit
def load_whole(parts, PARTS: tl.constexpr):
    """Return the largest of an amax's partial maxima, as float32."""
    found = tl.load(parts + tl.arange(0, PARTS))
    return tl.max(found, 0).to(tl.float32, bitcast=True)
