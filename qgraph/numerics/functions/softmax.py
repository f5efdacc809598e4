"""Softmax in two passes over memory, where the usual one takes three."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGE = 2.0**30  # from here on float32 numbers that differ are 64 apart: only the largest count


def two_pass_softmax(x: Tensor, dim: int) -> Tensor:
    """Return the softmax of `x` along `dim`, without a pass that looks for the largest element.

    exp(x) is a pair m·2^n with n = round(x / ln 2) and m in [0.7, 1.42], so that no element overflows.
    The first pass sums the pairs of a row, at the largest n seen; the second computes the pairs again
    and divides. As torch's: an element of -inf is 0; a row of them, or one with +inf or NaN, is NaN.
    Elements of 2**30 and more have m = 1 and no gradient.

    Shapes: x any -> the same.
    Dtypes: any float; float32 inside, x / ln 2 and what is left of it in float64.
    Source: arXiv 2001.04438, algorithm 3.
    """
    wide = x.double()
    power = (wide / math.log(2)).round().detach()
    rest = torch.where(wide.abs() < _LARGE, wide - power * math.log(2), 0.0)
    most = power.amax(dim, keepdim=True)
    terms = torch.exp(rest.float()) * torch.exp2((power - most).float())
    return (terms / terms.sum(dim, keepdim=True)).to(x.dtype)
