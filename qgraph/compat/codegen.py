"""The program Inductor would run, written without running it, and how it would configure its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch._inductor import config, ir
from torch._inductor.codecache import PyCodeCache
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

from qgraph.compat import meta


@dataclass(frozen=True, kw_only=True)
class Written:
    """A kernel that Inductor wrote.

    `origins` are the graph's nodes it computes, in graph order; `touched` gives the bytes of the
    buffers behind its arguments that it reads or writes, each once, by the argument's name.
    """

    name: str
    source: str
    origins: tuple[Node, ...] = field(repr=False)
    touched: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Called:
    """A call of a library: the node it computes is the last of `origins`."""

    kind: str  # how Inductor calls such calls
    origins: tuple[Node, ...] = field(repr=False)


def write_program(
    module: GraphModule, *, backward: bool
) -> tuple[str, tuple[Written | Called, ...]]:
    """Return the program for a graph of fake GPU tensors, and what it launches, in order.

    A device must be seen: see `standin`.
    """
    inputs = [meta.value(node) for node in module.graph.find_nodes(op="placeholder")]
    view_to_reshape(module)
    launches: list[Written | Called] = []
    define: Any = TritonScheduling.define_kernel
    extern: Any = Scheduler.codegen_extern_call

    def define_kernel(self: Any, source: str, schedule: Any, kernel: Any) -> str:
        name: str = define(self, source, schedule, kernel)
        launches.append(_written(name, source, schedule, kernel, order))
        return name

    def extern_call(self: Any, node: Any) -> None:
        extern(self, node)
        if not isinstance(node.node, ir.MultiOutput):
            launches.append(_called(node.node, order))

    with (
        V.set_fake_mode(meta.fake_mode(module.graph)),
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
    return str(getattr(code, "value", code)), tuple(launches)


def _written(
    name: str, source: str, schedule: Any, kernel: Any, order: Mapping[Node, int]
) -> Written:
    for placeholder in (Placeholder.DESCRIPTIVE_NAME, Placeholder.KERNEL_NAME):
        source = source.replace(str(placeholder), name)
    nodes = [entry for entry in schedule if hasattr(entry, "get_name")]
    origins = {origin for entry in nodes for origin in entry.node.get_origins()}
    names, buffers, *_ = kernel.args.python_argdefs()
    touched = {
        argument.name: _touched(kernel, buffer)
        for argument, buffer in zip(names, buffers, strict=False)
    }
    return Written(name=name, source=source, origins=_sorted(origins, order), touched=touched)


def _called(call: Any, order: Mapping[Node, int]) -> Called:
    origin = getattr(call, "origin_node", None)
    origins = _sorted(set(call.get_origins()), order)
    if origin is not None:
        origins = (*(o for o in origins if o is not origin), origin)
    return Called(kind=type(call).__name__, origins=origins)


def _sorted(origins: set[Node], order: Mapping[Node, int]) -> tuple[Node, ...]:
    return tuple(sorted(origins, key=lambda node: order.get(node, -1)))


def _touched(kernel: Any, buffer: Any) -> int:
    """Return how many bytes of `buffer` the kernel touches: all of it, or the slices it indexes."""
    accesses = kernel.features.buf_accesses().get(buffer, ())
    if not accesses:
        return 0
    graph: Any = V.graph
    sizes = graph.sizevars
    whole = int(sizes.optimization_hint(graph.get_numel(buffer)))
    indices = {
        str(dep.index if isinstance(dep, MemoryDep) else number)
        for number, dep in enumerate(accesses)
    }
    space = 1
    for numel in kernel.numels.values():
        space *= int(sizes.optimization_hint(numel))
    return min(whole, len(indices) * space) * int(get_dtype_size(graph.get_dtype(buffer)))


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A Triton function that Inductor wrote, and what it has Triton compile it with."""

    function: Any
    signature: Mapping[str, str]
    constants: Mapping[Any, Any]
    options: Mapping[str, Any]
    attributes: Any


def first_configuration(source: str, name: str) -> Configured:
    """Return the kernel called `name` of Inductor's `source`, in the first way its heuristics list."""
    tuner = getattr(PyCodeCache.load(source), name)
    chosen = tuner.configs[0]
    known = tuner._create_compile_meta(chosen)
    return Configured(
        function=tuner.fn,
        signature=known["signature"],
        constants=known["constants"],
        options=tuner._create_compile_options(chosen, known),
        attributes=known["configs"][0],
    )
