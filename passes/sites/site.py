"""A matrix product as policies see it, and what its graph alone does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from qgraph.passes.graph.operand import Operand
from qgraph.passes.sites.processes import Processes


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph alone does not say.

    `parameters` and `buffers` are the names of the placeholders that hold these; `blocks` gives, for each
    stack of blocks (`model.layers`), how many there are in the whole model; `modules` gives the
    path of each module by its id, as text. `heads` are the paths of modules that make a vocabulary's
    scores, `tables` the placeholders that hold embeddings, `vocabulary` the rows of the largest.
    `root` is the path of the module whose graph it is, where the graph does not tell. `history` is the
    store of amax histories, if there is one; `processes` are the `Processes` that run the graph
    together, None for one alone.
    """

    parameters: frozenset[str]
    buffers: frozenset[str] = frozenset()
    blocks: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    vocabulary: int = 0
    root: str = ""
    history: int | None = None
    processes: Processes | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix product of a graph. Sizes are elements; of a dynamic size, its hint."""

    node: Node = field(repr=False, compare=False)
    number: int  # counted through the graph, from 0
    op: str  # linear, experts, conv, qk, pv, matmul, sdpa
    role: str  # fprop, dgrad, wgrad
    module: str
    block: int | None
    block_count: int | None
    operands: tuple[Operand, ...]
    shape: tuple[
        int, int, int, int
    ]  # batch or groups, m, n, k; zeros where an op has no such sizes
    flops: int
    dtype: str
    unsupported: str = ""  # why qgraph cannot quantize it, or nothing
    part: str = ""  # a part of the model that its structure shows it to be of: head
    sequence: object = (
        None  # what a product of the forward has in common with those of its backward
    )

    @property
    def operand_kinds(self) -> tuple[str, ...]:
        """The operands' kinds, in argument order; of a product qgraph leaves alone, the usual ones."""
        if self.operands:
            return tuple(operand.kind for operand in self.operands)
        return ("lhs", "rhs")
