"""Ops of torch's that no public function calls."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

__all__ = ["OpOverload", "int_mm", "is_op"]


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.

    Dtypes: int8, int8 -> int32.
    """
    return torch._int_mm(a, b)


def is_op(target: object) -> bool:
    """Whether what a node calls is an op, not a function of Python's."""
    return isinstance(target, OpOverload)
