"""Quantizing a tensor: the definitions every kernel is held to, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qgraph.errors import ShapeError
from qgraph.formats import Block, BlockFormat, FloatFormat
from qgraph.numerics.cast import decode, encode, round_to
from qgraph.numerics.noise import random_bytes
from qgraph.numerics.scales import e8m0_value, full_precision, power_of_two, two_level


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where stochastic rounding takes its bits: see `random_bytes`."""

    seed: int
    site: int


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    values: Tensor  # [..., M/A, A, K/B, B], on the element's grid
    scale: Tensor  # [..., M/A, 1, K/B, 1] float32: what a code is worth, the tensor scale left out
    stored: Tensor  # the scale as kept beside the codes
    tensor_scale: Tensor  # [] float32


def fake_quant(x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None = None) -> Tensor:
    """Quantize `x` and dequantize it again: `x` on the grid of `fmt`.

    Blocks lie along `axis`, the one a product sums over; a ragged last block is a shorter
    block. Rounding is to nearest, ties to even, or stochastic when `noise` is given.

    Shapes: x [..., M, K] (K the size of `axis`, one of the last two) -> the same.
    Dtypes: float32 or bfloat16 -> the same; arithmetic in float32, one rounding to x's dtype.
    Raises: ShapeError if x has fewer than two axes or `axis` is not one of the last two.
    Source: the rules of `qgraph.numerics.scales`.
    """
    rounded = _round(x, fmt, axis, noise)
    values = rounded.values * rounded.scale
    if fmt.tensor_scale:
        values = values * rounded.tensor_scale
    return _from_tiles(values, x.shape, axis).to(x.dtype).contiguous()


def quantize(
    x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits hardware would store: (codes, scales, tensor scale).

    `axis` is moved last and both axes are padded with zeros to whole blocks. Codes of at most
    4 bits are packed two to a byte, the even index in the low half.

    Shapes: x [..., M, K] -> codes [..., M', K'] (or K'/2), scales [..., M'/A, K'/B], [].
    Dtypes: uint8 codes; scales float8_e4m3fn, uint8 (E8M0) or float32; tensor scale float32.
    Raises: ShapeError as `fake_quant`.
    """
    rounded = _round(x, fmt, axis, noise)
    codes = encode(rounded.values, fmt.element).flatten(-2, -1).flatten(-3, -2)  # [..., M', K']
    if fmt.element.bits <= 4:
        if codes.shape[-1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        codes = (codes[..., 0::2] & 15) | ((codes[..., 1::2] & 15) << 4)
    stored = rounded.stored.squeeze(-1).squeeze(-2)
    return codes.contiguous(), stored.contiguous(), rounded.tensor_scale


def dequantize(
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    fmt: BlockFormat,
    shape: torch.Size,
    axis: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the values `quantize` stored, as `fake_quant` would give them.

    Shapes: as `quantize` returns them -> `shape`.
    Dtypes: -> `dtype`.
    """
    if fmt.element.bits <= 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2, -1)
    scale = scales.float() if scales.dtype != torch.uint8 else e8m0_value(scales)
    values = _to_tiles(decode(codes, fmt.element), scale)
    values = values * scale[..., :, None, :, None]
    if fmt.tensor_scale:
        values = values * tensor_scale
    return _from_tiles(values, shape, axis).to(dtype).contiguous()


def check_axis(x: Tensor, axis: int) -> None:
    """Raise ShapeError if x has fewer than two axes or `axis` is not one of the last two."""
    if x.dim() < 2 or axis not in (-1, -2, x.dim() - 1, x.dim() - 2):
        raise ShapeError(
            f"quantization runs along one of the last two axes, not axis {axis} of {x.dim()}"
        )


def _round(x: Tensor, fmt: BlockFormat, axis: int, noise: Noise | None) -> _Rounded:
    check_axis(x, axis)
    rows = x.float().movedim(axis, -1)  # [..., M, K]
    tiles = _cut(rows, fmt.block)  # [..., M/A, A, K/B, B]
    block_amax = (
        tiles.abs().amax((-3, -1), keepdim=True) if tiles.numel() else tiles[..., :1, :, :1]
    )
    amax = block_amax.amax() if block_amax.numel() else block_amax.new_zeros(())
    if fmt.block.across is None:
        block_amax = amax.expand_as(block_amax)  # one scale for the batch too
    tensor_scale = torch.ones((), device=x.device)
    if fmt.tensor_scale:
        factor, scale, tensor_scale = two_level(block_amax, amax, fmt.element)
        stored, scaled = scale.to(torch.float8_e4m3fn), tiles * factor
    elif fmt.scale == "fp32":
        factor, scale = full_precision(block_amax, fmt.element)
        scaled = tiles * factor if isinstance(fmt.element, FloatFormat) else tiles / factor
        stored = scale
    else:
        scale, stored = power_of_two(block_amax, fmt.element, ceil=fmt.scale == "ue8m0-rceil")
        scaled = tiles / scale
    bits = None
    if noise is not None:
        bits = random_bytes(x.shape, axis, noise.seed, noise.site, x.device).movedim(axis, -1)
        bits = _cut(bits, fmt.block)
    return _Rounded(
        values=round_to(scaled, fmt.element, bits),
        scale=scale,
        stored=stored,
        tensor_scale=tensor_scale,
    )


def _cut(rows: Tensor, block: Block) -> Tensor:
    """Cut [..., M, K] into tiles [..., M/A, A, K/B, B], padding with zeros."""
    size, width = rows.shape[-2:]
    across, along = block.across or max(size, 1), block.along or max(width, 1)
    padded = torch.nn.functional.pad(rows, (0, -width % along, 0, -size % across))
    tiles: Tensor = padded.unflatten(-1, (-1, along)).unflatten(-3, (-1, across))
    return tiles


def _to_tiles(rows: Tensor, scale: Tensor) -> Tensor:
    """Cut padded rows [..., M', K'] so that `scale` [..., M'/A, K'/B] fits."""
    high, wide = scale.shape[-2:]
    across, along = rows.shape[-2] // max(high, 1), rows.shape[-1] // max(wide, 1)
    rows = rows[..., : along * wide]
    tiles: Tensor = rows.unflatten(-1, (wide, along)).unflatten(-3, (high, across))
    return tiles


def _from_tiles(tiles: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Undo `_cut`: drop the padding, put the axis back."""
    rows = tiles.flatten(-2, -1).flatten(-3, -2)
    moved = torch.empty(shape, device="meta").movedim(axis, -1).shape
    return rows[..., : moved[-2], : moved[-1]].movedim(-1, axis)
