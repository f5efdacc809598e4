"""A module as a policy sees it before there is a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qgraph.passes import block_of


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A product that a module may have, by default a linear layer's first."""

    module: str
    block: int | None
    block_count: int | None
    op: str = "linear"
    role: str = "fprop"
    operand_kinds: tuple[str, ...] = ("input", "weight")

    @classmethod
    def at(cls, name: str, blocks: Mapping[str, int]) -> Layer:
        """Return the module called `name`."""
        block, count = block_of(name, blocks)
        return cls(module=name, block=block, block_count=count)
