"""Asking the table of kernels, in the few words that tests have."""

from __future__ import annotations

import torch

from qgraph.formats import parse_format
from qgraph.ops import Machine, Multiply, Quantize, choose


def product_of(
    left: str,
    right: str,
    machine: Machine,
    *,
    always: bool = False,
    dtype: torch.dtype = torch.float32,
    flops: int | None = None,
) -> str:
    """Return the name of the native product of two formats there, or why it is emulated: `no ...`."""
    first, second = (Quantize(format=parse_format(text), dtype=dtype) for text in (left, right))
    work = Multiply(left=first, right=second, dtype=dtype, flops=flops)
    chosen = choose(work, machine, always=always)
    return chosen.why if chosen.falls_back else chosen.kernel.name
