"""The scales of a tensor's blocks, and rounding under them: the steps every format takes.

The range of each block, its scale, the codes. `Kernels` are the two steps that touch every
element; a faster pair gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from qgraph.formats import NEAREST, Block, BlockFormat, Element, Rounding
from qgraph.numerics import dialects, ranges
from qgraph.numerics.cast import encode, round_to
from qgraph.numerics.noise import random_bits
from qgraph.numerics.scales import Scales, find_scales, zero_point
from qgraph.numerics.tiles import cut, from_tiles


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where random bits come from: see `random_bits`."""

    seed: int
    site: int

    @property
    def of_scales(self) -> Noise:
        """The bits that scales are rounded with: a site of their own."""
        return replace(self, site=self.site | 1 << 31)


ErrorKind = Literal["squared64", "absolute", "squared"]
ERRORS: tuple[ErrorKind, ...] = get_args(ErrorKind)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The steps that read and write every element.

    `largest(x, block, axis)`: see `block_amax`. `round(x, fmt, scales, axis, rounding, noise, codes)`:
    see `round_blocks`. `error(x, values, block, axis, kind)`: see `block_error`. `encode`: see there.
    """

    largest: Callable[[Tensor, Block, int], Tensor]
    round: Callable[[Tensor, BlockFormat, Scales, int, Rounding, Noise | None, bool], Tensor]
    error: Callable[[Tensor, Tensor, Block, int, ErrorKind], Tensor]
    encode: Callable[[Tensor, Element], Tensor] = encode


def block_amax(x: Tensor, block: Block, axis: int) -> Tensor:
    """Return the largest magnitude of each block of `x`; NaN is the largest of all.

    Shapes: x [..., M, K] (K the size of `axis`) -> [..., M/A, 1, K/B, 1].
    Dtypes: float32.
    """
    return ranges.absmax(cut(x.movedim(axis, -1), block))


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    scales: Scales,
    axis: int,
    rounding: Rounding,
    noise: Noise | None,
    codes: bool,
) -> Tensor:
    """Scale each element of `x`, round it to a code, and return what the code is worth.

    With `codes` return the codes themselves, as numbers on the element's grid.

    Shapes: x [..., M, K], scales [..., M/A, 1, K/B, 1] -> as x.
    Dtypes: float32.
    """
    scaled = scale_tiles(cut(x.movedim(axis, -1), fmt.block), scales)
    bits = None
    if rounding.random and noise is not None:
        bits = random_bits(x.shape, axis, noise.seed, noise.site, x.device, rounding.bits)
        bits = cut(bits.movedim(axis, -1), fmt.block)
    values = round_to(scaled, fmt.element, bits, rounding)
    if not codes:
        values = values if scales.zero is None else values + scales.zero
        values = values * scales.decode
        values = values if scales.outer is None else values * scales.outer
        values = values + 0.0 if scales.plus_zero else values
    return from_tiles(values, x.shape, axis)


def scale_tiles(tiles: Tensor, scales: Scales) -> Tensor:
    """Return the elements as they are rounded: in units of the code.

    Shapes: tiles [..., M/A, A, K/B, B] -> the same.
    """
    scaled = tiles / scales.encode if scales.divides else tiles * scales.encode
    scaled = scaled if scales.zero is None else scaled - scales.zero
    return scaled + 0.0 if scales.plus_zero else scaled


def block_error(x: Tensor, values: Tensor, block: Block, axis: int, kind: ErrorKind) -> Tensor:
    """Return the error of `values` against `x` in each block, in the order of `qgraph.numerics.ranges`.

    Shapes: x and values [..., M, K] -> [..., M/A, 1, K/B, 1].
    Dtypes: float32 -> float64.
    """
    tiles, rounded = (cut(part.movedim(axis, -1), block) for part in (x, values))
    if kind == "squared64":
        return ranges.squared_error(tiles, rounded)
    return ranges.ordered_error(tiles, rounded, squared=kind == "squared")


REFERENCE = Kernels(largest=block_amax, round=round_blocks, error=block_error)


def block_scales(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None = None,
    kernels: Kernels = REFERENCE,
    amax: Tensor | None = None,
) -> Scales:
    """Return the scales of the blocks of `x`, [..., M/A, 1, K/B, 1].

    `amax` is the largest magnitude where `x` alone does not tell it: of the tensor, [], or of each
    block.
    """
    if fmt.asymmetric:
        return _asymmetric(cut(x.movedim(axis, -1), fmt.block, edges=True), fmt)
    floor = fmt.scale.range.floor
    span = _range(x, fmt, axis, kernels, amax)
    if amax is not None and not amax.dim() and fmt.scale.range.kind != "delayed":
        whole = amax
    elif fmt.tensor_scale == "fp32-row":
        whole = span.amax(-2, keepdim=True) if span.numel() else span.sum(-2, keepdim=True)
    else:
        whole = span.amax() if span.numel() else span.new_zeros(())
    if str(fmt.block) == "tensor":
        span = whole.expand_as(span)  # one scale for the batch too
    span = span.clamp(min=floor) if floor else span
    shares = ranges.shares_of(fmt.scale.range)
    bits = _scale_bits(span, fmt, noise)
    best = _find(span, whole, fmt, bits, shares[0])
    if fmt.scale.rounding == "eden":
        return _corrected(x, fmt, best, axis, bits, kernels)
    if len(shares) == 1:
        return best
    error = _error(x, fmt, best, whole, axis, kernels)
    for share in shares[1:]:
        tried = _find(span, whole, fmt, bits, share)
        again = _error(x, fmt, tried, whole, axis, kernels)
        better = again < error
        error = torch.where(better, again, error)
        best = replace(
            best,
            encode=torch.where(better, tried.encode, best.encode),
            decode=torch.where(better, tried.decode, best.decode),
            stored=torch.where(better, tried.stored, best.stored),
        )
    return best


def _find(
    span: Tensor, whole: Tensor, fmt: BlockFormat, bits: Tensor | None, share: float
) -> Scales:
    if fmt.dialect != "te":
        found = dialects.RULES[fmt.dialect](span, whole, fmt, share)
    else:
        found = find_scales(span, whole, fmt, bits, share)
    if fmt.two_level and fmt.dialect == "te":  # the tensor scale shows an infinity
        return found
    # What saturates is stored as the dialect does; in a product it must not look like a number.
    hidden = span.isinf() & found.decode.isfinite()
    return replace(found, decode=torch.where(hidden, torch.nan, found.decode))


def _scale_bits(span: Tensor, fmt: BlockFormat, noise: Noise | None) -> Tensor | None:
    """Return the random bits that scales are rounded with, if they are."""
    if not fmt.scale.random:
        return None
    assert noise is not None, "a stochastic scale needs random bits"
    own = noise.of_scales
    width = dialects.EDEN_ROUNDING.bits if fmt.scale.rounding == "eden" else 8
    return random_bits(span.shape, -2, own.seed, own.site, span.device, width)


def _corrected(
    x: Tensor, fmt: BlockFormat, scales: Scales, axis: int, bits: Tensor | None, kernels: Kernels
) -> Scales:
    """Return the scales after EDEN's correction; codes are those of the scales before."""
    assert bits is not None, "EDEN rounds scales with random bits"
    codes = kernels.round(x, fmt, scales, axis, NEAREST, None, True)
    tiles, coded = (cut(part.movedim(axis, -1), fmt.block) for part in (x, codes))
    stored = dialects.eden(tiles / scales.encode, coded, scales.stored, bits)
    return replace(scales, decode=stored, stored=stored)


def _range(x: Tensor, fmt: BlockFormat, axis: int, kernels: Kernels, amax: Tensor | None) -> Tensor:
    range = fmt.scale.range
    if amax is not None and amax.dim():
        return amax
    if range.kind in ("absmax", "mse", "4over6", "4over6_mse"):
        return kernels.largest(x, fmt.block, axis)
    rows = x.movedim(axis, -1)
    tiles = cut(rows, fmt.block)
    if range.kind == "fixed" or not tiles.numel():
        return ranges.fixed(tiles, range.value)
    if range.kind == "delayed":
        assert amax is not None, "a delayed range comes from the steps before"
        return amax.to(x.dtype).expand_as(tiles[..., :1, :, :1])
    if str(fmt.block) == "tensor":  # the batch is in one block
        tiles = tiles.reshape(1, -1, 1, tiles.shape[-1])
    size, width = tiles.shape[-4:-2].numel(), tiles.shape[-2:].numel()
    if str(fmt.block) != "tensor":
        size, width = rows.shape[-2:]
    sizes = ranges.block_sizes(size, width, tiles.shape[-3], tiles.shape[-1], x.device)
    if range.kind in ("std", "rms"):
        return ranges.spread(tiles, sizes, centered=range.kind == "std")
    return ranges.percentile(tiles, sizes, range.value)


def _asymmetric(tiles: Tensor, fmt: BlockFormat) -> Scales:
    if not tiles.numel():
        low = high = tiles[..., :1, :, :1]
    else:
        low, high = tiles.amin((-3, -1), keepdim=True), tiles.amax((-3, -1), keepdim=True)
        if str(fmt.block) == "tensor":
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return zero_point(low, high, fmt.element, fmt.scale.range.floor)


def _error(
    x: Tensor, fmt: BlockFormat, scales: Scales, whole: Tensor, axis: int, kernels: Kernels
) -> Tensor:
    """Return the error of each block under `scales`, as the format's range counts it."""
    kind = fmt.scale.range.kind
    as_te = kind != "mse" and fmt.two_level and fmt.dialect == "te"
    values = kernels.round(x, fmt, scales, axis, NEAREST, None, as_te)
    if as_te:  # its order of operations differs from that of dequantizing
        bound = torch.full_like(whole, fmt.element.max * fmt.scale.range.value)
        tiles = cut(values.movedim(axis, -1), fmt.block) * scales.stored * whole / bound
        values = from_tiles(tiles, x.shape, axis)
    if kind == "mse":
        return kernels.error(x, values, fmt.block, axis, "squared64")
    squared = kind == "4over6_mse" or fmt.dialect == "quartet2"
    return kernels.error(x, values, fmt.block, axis, "squared" if squared else "absolute")
