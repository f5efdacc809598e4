"""Ranges of blocks: which magnitude the element's largest value stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qgraph.formats import Range

# The scale of e2m1 that suits a normal distribution of standard deviation 1 best.
# Source: QuEST (arXiv 2502.05003), Quartet (arXiv 2505.14669).
NORMAL_SCALE = 2.92247856 / 6
# What share of the largest magnitude `mse` tries, and the error of which it takes the least.
SHARES = tuple(1 - i / 40 for i in range(20))
# `4over6`: with the largest magnitude mapped to 6, the scale as it is; mapped to 4, 1.5 times it.
FOUR_OVER_SIX = (1.0, 1.5)


def absmax(tiles: Tensor) -> Tensor:
    """Return the largest magnitude of each block; NaN is the largest of all.

    Shapes: tiles [..., M/A, A, K/B, B] -> [..., M/A, 1, K/B, 1].
    """
    if not tiles.numel():
        return tiles[..., :1, :, :1].abs()
    return tiles.abs().amax((-3, -1), keepdim=True)


def percentile(tiles: Tensor, counts: Tensor, percent: float) -> Tensor:
    """Return the magnitude of rank ceil(percent · n) of each block, n its size: no interpolation.

    Shapes: tiles [..., M/A, A, K/B, B], counts (n) [M/A, 1, K/B, 1] -> [..., M/A, 1, K/B, 1].
    """
    values = _flat(tiles.abs()).sort(-1, descending=True).values  # padding, zero, comes last
    rank = torch.ceil(counts.double() * (percent / 100)).long().clamp(min=1)
    index = (counts - rank).flatten(-2, -1).squeeze(-2)[..., None]  # [M/A, K/B, 1]
    found = values.gather(-1, index.expand(*values.shape[:-1], 1))
    found = torch.where(values[..., :1].isnan() | values[..., -1:].isnan(), torch.nan, found)
    return found[..., :, None, :, :]


def spread(tiles: Tensor, counts: Tensor, *, centered: bool) -> Tensor:
    """Return the scale of e2m1 that suits a normal distribution of each block's spread.

    NORMAL_SCALE · s + 1e-8, s the standard deviation (`centered`) or the root mean square; sums in
    float64.

    Shapes: as `percentile`.
    Source: QuEST (arXiv 2502.05003); its MXFP4 kernels subtract the mean, the NVFP4 ones do not.
    """
    flat = _flat(tiles.double())
    square = flat.square().sum(-1)[..., :, None, :, None] / counts
    mean = flat.sum(-1)[..., :, None, :, None] / counts
    variance = (square - mean.square()).clamp(min=0) if centered else square
    return (NORMAL_SCALE * torch.sqrt(variance) + 1e-8).float()


def fixed(tiles: Tensor, value: float) -> Tensor:
    """Return `value` for each block, whatever is in it.

    Shapes: tiles [..., M/A, A, K/B, B] -> [..., M/A, 1, K/B, 1].
    """
    return torch.full_like(tiles[..., :1, :, :1], value)


def squared_error(tiles: Tensor, values: Tensor) -> Tensor:
    """Return the squared error of each block, summed in float64 along each row, row after row.

    Shapes: both [..., M/A, A, K/B, B] -> [..., M/A, 1, K/B, 1].
    """
    squares = _flat((values.double() - tiles.double()).square())
    return squares.cumsum(-1)[..., -1:].unsqueeze(-3)  # a running sum has one order


def ordered_error(tiles: Tensor, values: Tensor, *, squared: bool) -> Tensor:
    """Return the absolute or squared error of each block, summed in float32 in one order.

    Along a row from left to right; the rows then as a tree, halves onto halves. Transformer
    Engine's order for 16x16 tiles.

    Shapes: both [..., M/A, A, K/B, B] -> [..., M/A, 1, K/B, 1].
    """
    error = (values - tiles).abs()
    error = error * error if squared else error
    total = torch.zeros_like(error[..., 0])
    for i in range(error.shape[-1]):
        total = total + error[..., i]
    high = 1 << max(total.shape[-2] - 1, 0).bit_length()
    total = torch.nn.functional.pad(total, (0, 0, 0, high - total.shape[-2]))
    while high > 1:
        high //= 2
        total = total[..., :high, :] + total[..., high:, :]
    return total.unsqueeze(-1).double()


def shares_of(range: Range) -> tuple[float, ...]:
    """Return the shares of the largest magnitude that a range chooses from."""
    if range.kind == "mse":
        return SHARES
    return FOUR_OVER_SIX if range.kind.startswith("4over6") else (1.0,)


def block_sizes(size: int, width: int, across: int, along: int, device: torch.device) -> Tensor:
    """Return how many elements each block of an [size, width] matrix has: ragged ones have fewer.

    Shapes: -> [ceil(size/across), 1, ceil(width/along), 1] int64.
    """
    high = _extents(size, across, device)
    wide = _extents(width, along, device)
    return high[:, None, None, None] * wide[None, None, :, None]


def _extents(size: int, side: int, device: torch.device) -> Tensor:
    starts = torch.arange(0, math.ceil(size / side) * side, side, device=device)
    return (size - starts).clamp(max=side)


def _flat(tiles: Tensor) -> Tensor:
    """[..., M/A, A, K/B, B] -> [..., M/A, K/B, A·B], in memory, so that sums have one order."""
    return tiles.movedim(-3, -2).flatten(-2, -1).contiguous()
