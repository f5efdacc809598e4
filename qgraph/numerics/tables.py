"""Codes by looking them up: the bits of `encode` and `decode`, many times faster on a CPU.

An element of at most 8 bits has few values, and most have few mantissa bits: bfloat16 holds them,
and its 65536 numbers make a table.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qgraph.formats import Element
from qgraph.numerics.cast import decode, encode


def encode_by_table(values: Tensor, fmt: Element) -> Tensor:
    """See `qgraph.numerics.encode`: the same bits."""
    table = _codes(fmt)
    if table is None or not values.numel():
        return encode(values, fmt)
    index = values.to(torch.bfloat16).view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    return table.index_select(0, index.flatten()).view(values.shape)


def decode_by_table(codes: Tensor, fmt: Element) -> Tensor:
    """See `qgraph.numerics.decode`: the same bits."""
    if fmt.bits > 8 or not codes.numel():
        return decode(codes, fmt)
    return _values(fmt).index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)


def decode_pairs(codes: Tensor, fmt: Element) -> Tensor:
    """Return the values of codes that lie two to a byte, the even one in the low half.

    Shapes: [..., N] -> [..., 2 N].
    Dtypes: uint8 -> float32.
    """
    if not codes.numel():
        return codes.new_empty((*codes.shape[:-1], 2 * codes.shape[-1]), dtype=torch.float32)
    found = torch.nn.functional.embedding(codes.to(torch.int32), _pairs(fmt))
    return found.flatten(-2)


@functools.cache
def _codes(fmt: Element) -> Tensor | None:
    """Return the code of each bfloat16, by its bits; None if it does not hold all the values."""
    if fmt.bits > 8:
        return None
    values = _values(fmt)
    if not torch.equal(values.nan_to_num(), values.to(torch.bfloat16).float().nan_to_num()):
        return None
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    found = encode(every.view(torch.bfloat16).float(), fmt)
    return found.roll(2**15).contiguous()  # as unsigned numbers: the positive ones first


@functools.cache
def _values(fmt: Element) -> Tensor:
    return decode(torch.arange(256, dtype=torch.uint8), fmt).contiguous()


@functools.cache
def _pairs(fmt: Element) -> Tensor:
    byte = torch.arange(256, dtype=torch.uint8)
    return torch.stack([decode(byte & 15, fmt), decode(byte >> 4, fmt)], -1).contiguous()
