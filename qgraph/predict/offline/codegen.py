"""The program Inductor would run, generated without running it: one `KernelCall` for each kernel launched."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import GraphModule, Node

from qgraph.compat import codegen, meta


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One kernel the program launches, or one call of a library.

    `origins` are the graph's nodes it computes, in graph order; `minimum` the bytes of the
    buffers it reads and writes, each once; `moved` counts a buffer again for each pass over it.
    """

    name: str
    source: str  # Triton; empty for a library
    origins: tuple[Node, ...] = field(repr=False)
    minimum: int
    moved: int

    @property
    def node(self) -> Node:
        """The node a library call computes."""
        return self.origins[-1]


@dataclass(frozen=True, kw_only=True)
class GeneratedStep:
    """The generated program of one graph: its text, and its calls in order."""

    text: str
    calls: tuple[KernelCall, ...]


def generate(module: GraphModule, *, backward: bool) -> GeneratedStep:
    """Return the program for a graph of fake GPU tensors; within `standing_in`."""
    text, launches = codegen.write_program(module, backward=backward)
    calls = tuple(
        _generated(launch) if isinstance(launch, codegen.Written) else _library(launch)
        for launch in launches
    )
    return GeneratedStep(text=text, calls=calls)


def _generated(kernel: codegen.Written) -> KernelCall:
    minimum, moved = _traffic(kernel)
    return KernelCall(
        name=kernel.name,
        source=kernel.source,
        origins=kernel.origins,
        minimum=minimum,
        moved=moved,
    )


def _library(call: codegen.Called) -> KernelCall:
    origins = call.origins
    size = node_bytes(origins[-1]) if origins else 0
    name = str(origins[-1].target) if origins else call.kind
    return KernelCall(name=name, source="", origins=origins, minimum=size, moved=size)


def node_bytes(node: Node) -> int:
    """Return the bytes of the tensors that `node` reads and writes, each element once."""
    values = [meta.value(source) for source in (*node.all_input_nodes, node)]
    total = 0
    for value in values:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor):
                sizes = zip(tensor.shape, tensor.stride(), strict=True)
                total += math.prod(n for n, stride in sizes if stride) * tensor.element_size()
    return total


def _traffic(kernel: codegen.Written) -> tuple[int, int]:
    """Return the bytes a generated kernel must move, and those it moves.

    It must read or write the part of each buffer that it touches once. A statement that loads a
    buffer where another one did, in a second pass over a long row, moves it again.
    """
    minimum = moved = 0
    for argument, size in kernel.touched.items():
        loads = Counter(re.findall(rf"tl\.load\({argument} \+ (.*?)\), ", kernel.source))
        stores = len(re.findall(rf"tl\.(?:store|atomic_add)\({argument} \+ ", kernel.source))
        atomic = f"tl.atomic_add({argument} +" in kernel.source
        minimum += size * (bool(loads) + bool(stores) + atomic)
        moved += size * (max(loads.values(), default=0) + bool(stores) + atomic)
    return minimum, moved
