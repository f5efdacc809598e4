"""Inductor's decompositions, without those that would hide a matrix product from the passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qgraph.compat import inductor

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot, _aten.vdot,
    _aten._trilinear,
)  # fmt: skip


class _Table(dict[Any, Callable[..., Any]]):
    """A table Inductor's cache can write into its key: by name, as its functions cannot be pickled."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return decompositions, ()


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return Inductor's table for both front doors.

    Inductor turns thin products (one row, one column) into multiplications and sums; taken out
    of the table, every product stays one node and no product is left unseen.
    """
    hidden = {getattr(op, name) for op in _PRODUCTS for name in op.overloads()}
    return _Table(
        (op, rule) for op, rule in inductor.decomposition_table().items() if op not in hidden
    )
