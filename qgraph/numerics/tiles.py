"""Cutting a tensor into the blocks that share a scale, and putting it together again."""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.errors import ShapeError
from qgraph.formats import Block


def check_axis(x: Tensor, axis: int) -> None:
    """Raise ShapeError if x has fewer than two axes or `axis` is not one of the last two."""
    if x.dim() < 2 or axis not in (-1, -2, x.dim() - 1, x.dim() - 2):
        raise ShapeError(
            f"quantization runs along one of the last two axes, not axis {axis} of {x.dim()}"
        )


def cut(rows: Tensor, block: Block, *, edges: bool = False) -> Tensor:
    """Cut [..., M, K] into tiles [..., M/A, A, K/B, B], padding with zeros, or with the edges."""
    size, width = rows.shape[-2:]
    across, along = block.across or max(size, 1), block.along or max(width, 1)
    pad = (-size % across, -width % along)
    if edges and rows.numel():
        down = rows[..., -1:, :].expand(*rows.shape[:-2], pad[0], width)
        rows = torch.cat([rows, down], -2)
        right = rows[..., -1:].expand(*rows.shape[:-1], pad[1])
        padded = torch.cat([rows, right], -1)
    else:
        padded = torch.nn.functional.pad(rows, (0, pad[1], 0, pad[0]))
    tiles: Tensor = padded.unflatten(-1, (-1, along)).unflatten(-3, (-1, across))
    return tiles


def to_tiles(rows: Tensor, scale: Tensor) -> Tensor:
    """Cut padded rows [..., M', K'] so that `scale` [..., M'/A, K'/B] fits."""
    high, wide = scale.shape[-2:]
    across, along = rows.shape[-2] // max(high, 1), rows.shape[-1] // max(wide, 1)
    rows = rows[..., : along * wide]
    tiles: Tensor = rows.unflatten(-1, (wide, along)).unflatten(-3, (high, across))
    return tiles


def from_tiles(tiles: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Undo `cut`: drop the padding, put the axis back."""
    rows = tiles.flatten(-2, -1).flatten(-3, -2)
    moved = torch.empty(shape, device="meta").movedim(axis, -1).shape
    return rows[..., : moved[-2], : moved[-1]].movedim(-1, axis)
