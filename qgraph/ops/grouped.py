"""Products of groups of rows with a matrix each: what the experts of a model compute."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Multiply group by group; `offsets` [G] holds where each group of the T rows ends.

    a [T, K] and b [G, K, N] give [T, N], zero past the last group. a [M, T] and b [T, N], which
    sum over the rows of a group, give [G, M, N]. The dtype is that of `a`.
    """
    out = grouped_mm_fake(a, b, offsets).zero_()
    start = 0
    for group, end in enumerate(offsets.tolist()):
        if start < end and b.dim() == 3:
            torch.mm(a[start:end], b[group], out=out[start:end])
        elif start < end:
            torch.mm(a[:, start:end], b[start:end], out=out[group])
        start = end
    return out


def grouped_mm_fake(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """Return an empty result of `grouped_mm`."""
    if b.dim() == 3:
        return a.new_empty(a.shape[0], b.shape[2])
    return a.new_empty(offsets.shape[0], a.shape[0], b.shape[1])


def pad_rows(x: Tensor, ends: Tensor, multiple: int, axis: int) -> Tensor:
    """Move the rows of each group to a start that is a multiple of `multiple`, zeros between.

    `axis` of x, -1 or -2 of two, counts rows; `ends` [G] says where each group ends. The result
    has room for any division of the rows into G groups. Rows past the last group are dropped.
    """
    rows = x.movedim(axis, 0)
    out = pad_rows_fake(x, ends, multiple, axis).zero_()
    sizes = ends.diff(prepend=ends.new_zeros(1))
    grown = pad_ends(ends, multiple) - ends  # how much longer it is up to the end of each group
    shift = torch.cat([grown.new_zeros(1), grown[:-1]]).repeat_interleave(sizes)
    targets = torch.arange(len(shift), device=x.device) + shift
    out.movedim(axis, 0)[targets] = rows[: len(shift)]
    return out


def pad_rows_fake(x: Tensor, ends: Tensor, multiple: int, axis: int) -> Tensor:
    """Return an empty result of `pad_rows`, in the layout of x."""
    shape = [*x.shape]
    most = shape[axis] + ends.shape[0] * (multiple - 1)
    shape[axis] = (most + multiple - 1) // multiple * multiple
    return x.new_empty(shape)


def pad_ends(ends: Tensor, multiple: int) -> Tensor:
    """Return where each group ends, [G], after `pad_rows`."""
    sizes = ends.diff(prepend=ends.new_zeros(1))
    padded = (sizes + multiple - 1) // multiple * multiple
    return padded.cumsum(0, dtype=ends.dtype)


def pad_ends_fake(ends: Tensor, multiple: int) -> Tensor:
    """Return an empty result of `pad_ends`."""
    return ends.new_empty(ends.shape)
