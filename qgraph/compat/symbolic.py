"""Sizes that are not yet numbers."""

from __future__ import annotations

from typing import Any

from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["hint", "statically_known_true"]


def hint(size: Any) -> int | None:
    """Return the number that a size had while it was captured; None if it had none yet."""
    if isinstance(size, int):
        return size
    found = getattr(size.node, "hint", None)
    return None if found is None else int(found)
