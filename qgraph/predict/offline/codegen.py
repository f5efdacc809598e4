"""The program Inductor would run, generated without running it: one `Call` for each kernel launched."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch._inductor import config, ir
from torch._inductor.codegen.triton import TritonScheduling
from torch._inductor.compile_fx import _recursive_post_grad_passes
from torch._inductor.debug import DebugContext
from torch._inductor.dependencies import MemoryDep
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import Scheduler
from torch._inductor.utils import Placeholder, get_dtype_size
from torch._inductor.virtualized import V
from torch.fx import GraphModule, Node


@dataclass(frozen=True, kw_only=True)
class Call:
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
class Program:
    """The generated program of one graph: its text, and its calls in order."""

    text: str
    calls: tuple[Call, ...]


def generate(module: GraphModule, *, backward: bool) -> Program:
    """Return the program for a graph of fake GPU tensors; within `standing_in`."""
    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    mode = next(value.fake_mode for value in inputs if hasattr(value, "fake_mode"))
    view_to_reshape(module)
    calls: list[Call] = []
    define: Any = TritonScheduling.define_kernel
    extern: Any = Scheduler.codegen_extern_call

    def define_kernel(self: Any, source: str, schedule: Any, kernel: Any) -> str:
        name: str = define(self, source, schedule, kernel)
        calls.append(_generated(name, source, schedule, kernel, order))
        return name

    def extern_call(self: Any, node: Any) -> None:
        extern(self, node)
        if not isinstance(node.node, ir.MultiOutput):
            calls.append(_library(node, order))

    with (
        V.set_fake_mode(mode),
        config.patch(compile_threads=1, force_disable_caches=True),
        mock.patch.object(TritonScheduling, "define_kernel", define_kernel),
        mock.patch.object(Scheduler, "codegen_extern_call", extern_call),
    ):
        _recursive_post_grad_passes(module, is_inference=False)
        order = {node: index for index, node in enumerate(module.graph.nodes)}
        lowering = GraphLowering(
            module, example_inputs=inputs, is_inference=False, is_backward=backward
        )
        with (
            V.set_debug_handler(DebugContext()),
            V.set_graph_handler(lowering),
            V.set_extern_kernel_nodes([]),
        ):
            lowering.run(*inputs)
            code: Any = lowering.codegen()[0]
    return Program(text=str(getattr(code, "value", code)), calls=tuple(calls))


def _generated(name: str, source: str, schedule: Any, kernel: Any, order: dict[Node, int]) -> Call:
    for placeholder in (Placeholder.DESCRIPTIVE_NAME, Placeholder.KERNEL_NAME):
        source = source.replace(str(placeholder), name)
    nodes = [entry for entry in schedule if hasattr(entry, "get_name")]
    origins = {origin for entry in nodes for origin in entry.node.get_origins()}
    minimum, moved = _traffic(kernel, source)
    return Call(
        name=name, source=source, origins=_sorted(origins, order), minimum=minimum, moved=moved
    )


def _library(scheduled: Any, order: dict[Node, int]) -> Call:
    node = scheduled.node
    origin = getattr(node, "origin_node", None)
    origins = _sorted(set(node.get_origins()), order)
    if origin is not None:
        origins = (*(o for o in origins if o is not origin), origin)
    size = node_bytes(origins[-1]) if origins else 0
    name = str(origins[-1].target) if origins else type(node).__name__
    return Call(name=name, source="", origins=origins, minimum=size, moved=size)


def node_bytes(node: Node) -> int:
    """Return the bytes of the tensors that `node` reads and writes, each element once."""
    values = [source.meta.get("val") for source in node.all_input_nodes] + [node.meta.get("val")]
    total = 0
    for value in values:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor):
                sizes = zip(tensor.shape, tensor.stride(), strict=True)
                total += math.prod(n for n, stride in sizes if stride) * tensor.element_size()
    return total


def _sorted(origins: set[Node], order: dict[Node, int]) -> tuple[Node, ...]:
    return tuple(sorted(origins, key=lambda node: order.get(node, -1)))


def _traffic(kernel: Any, source: str) -> tuple[int, int]:
    """Return the bytes a generated kernel must move, and those it moves.

    It must read or write the part of each buffer that it touches once. A statement that loads a
    buffer where another one did, in a second pass over a long row, moves it again.
    """
    names, buffers, *_ = kernel.args.python_argdefs()
    minimum = moved = 0
    for argument, buffer in zip(names, buffers, strict=False):
        loads = Counter(re.findall(rf"tl\.load\({argument.name} \+ (.*?)\), ", source))
        stores = len(re.findall(rf"tl\.(?:store|atomic_add)\({argument.name} \+ ", source))
        atomic = f"tl.atomic_add({argument.name} +" in source
        size = _touched(kernel, buffer)
        minimum += size * (bool(loads) + bool(stores) + atomic)
        moved += size * (max(loads.values(), default=0) + bool(stores) + atomic)
    return minimum, moved


def _touched(kernel: Any, buffer: Any) -> int:
    """Return how many bytes of `buffer` the kernel touches: all of it, or the slices it indexes."""
    accesses = kernel.features.buf_accesses().get(buffer, ())
    if not accesses:
        return 0
    sizes = V.graph.sizevars
    whole = int(sizes.optimization_hint(V.graph.get_numel(buffer)))
    indices = {
        str(dep.index if isinstance(dep, MemoryDep) else number)
        for number, dep in enumerate(accesses)
    }
    space = 1
    for numel in kernel.numels.values():
        space *= int(sizes.optimization_hint(numel))
    return min(whole, len(indices) * space) * int(get_dtype_size(V.graph.get_dtype(buffer)))
