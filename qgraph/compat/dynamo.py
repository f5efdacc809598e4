"""Dynamo, which takes a model's code for a graph: its limits, its guards, and capture without running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch._dynamo import config, trace_rules
from torch._dynamo.external_utils import wrap_inline
from torch._dynamo.functional_export import _dynamo_graph_capture_for_export
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import LocalSource, NNModuleSource
from torch._dynamo.utils import counters
from torch._guards import CompileContext
from torch.fx import GraphModule, Node

from qgraph.compat.table import is_there

_SETTING = "torch._dynamo.config.recompile_limit"
_SOURCE = "_dynamo_source"  # of a placeholder
_HOLDERS = ("_modules", "_parameters", "_buffers")
_ROOT = "_export_root."  # what a captured module puts before the names of parameters


def limit_setting() -> str:
    """Return what users call the limit of recompilations."""
    return _SETTING


def recompile_limit() -> int:
    """Return how many graphs Dynamo makes of one piece of code; the next call runs as it is."""
    limit: int = config.recompile_limit
    return limit


def own_limit(alike: int) -> dict[str, Any]:
    """Return the options by which the graphs of each model are counted alone: see `taken` and `within`.

    Without the first, Dynamo counts those of a class, and past its limit runs the next model of that class
    as it is. `alike` modules share one code and so one limit; each has graphs for training and for
    evaluation.
    """
    options: dict[str, Any] = {"recompile_limit": 2 * recompile_limit() * alike}
    if is_there("torch.compile(isolate_recompiles)"):
        options["isolate_recompiles"] = True
    return options


def taken(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that this torch.compile takes."""
    known = is_there("torch.compile(recompile_limit)")
    return {key: value for key, value in options.items() if known or key != "recompile_limit"}


def within(call: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return `call`, compiled with `taken(options)`, such that the limit is that of `options`.

    Where torch.compile takes none, Dynamo's own is another while it is called.
    """
    if is_there("torch.compile(recompile_limit)"):
        return call

    def held(*args: Any, **kwargs: Any) -> Any:
        with config.patch(recompile_limit=limit_of(options)):
            return call(*args, **kwargs)

    return held


def limit_of(options: Mapping[str, Any]) -> int:
    """Return how many graphs Dynamo makes of one piece of code under these options of torch.compile."""
    return int(options.get("recompile_limit") or recompile_limit())


def past_limit() -> bool:
    """Whether Dynamo ran code as it is for having compiled it too often, in this process."""
    return any("recompile limit" in why for why in counters["unimplemented"])


def uncut() -> AbstractContextManager[None]:
    """Return a context in which graphs are not cut where DDP's buckets end."""
    context: AbstractContextManager[None] = config.patch(optimize_ddp=False)
    return context


def frame() -> int | None:
    """Return Dynamo's number of the code that is being compiled, None outside."""
    return getattr(CompileContext.current_compile_id(), "frame_id", None)


def guard_modules(module: GraphModule) -> None:
    """Make Dynamo compile this frame anew for each module it is called on.

    After a graph break, blocks of one class would share the first block's graph, and with it what
    was decided for that block.
    """
    for node in module.graph.find_nodes(op="placeholder"):
        owner = _module_of(node)
        if owner is not None:
            install_guard(owner.make_guard(GuardBuilder.ID_MATCH))


def _module_of(node: Node) -> Any:
    """Return where Dynamo has the outermost module from that an input belongs to, None if to none."""
    owners = [source.base for source in _sources(node) if isinstance(source, NNModuleSource)]
    return owners[-1] if owners else None


def _sources(node: Node) -> Iterator[Any]:
    """Yield where Dynamo has an input from, the outermost last."""
    source = getattr(node, _SOURCE, None)
    while source is not None:
        yield source
        source = getattr(source, "base", None)


def holds_parameter(node: Node) -> bool:
    """Whether an input is a module's parameter, whatever tensor stands in its place.

    `torch.func.functional_call` puts others there.
    """
    return any(getattr(source, "member", None) == "_parameters" for source in _sources(node))


def path_from_self(node: Node) -> str:
    """Return where an input lies in the module whose code is compiled: `inner.weight`; "" if not in it."""
    *above, outermost = [*_sources(node)] or [None]
    if not (isinstance(outermost, LocalSource) and outermost.local_name == "self"):
        return ""
    parts = [getattr(s, "index", None) or getattr(s, "member", None) for s in reversed(above)]
    return ".".join(part for part in parts if isinstance(part, str) and part not in _HOLDERS)


def enters(function: Callable[..., Any]) -> bool:
    """Whether Dynamo follows calls of `function`: not where it is torch's own (nn.Linear's forward)."""
    return not trace_rules.check(function)


def inlined(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` such that Dynamo follows it, torch's own or not."""
    wrapped: Callable[..., Any] = wrap_inline(call)
    return wrapped


def capture_module(model: nn.Module, inputs: Mapping[str, Any]) -> GraphModule:
    """Return `model(**inputs)` as one graph, without running it.

    Raises: what Dynamo raises where it cannot follow a model, its assertions among it.
    """
    module: GraphModule = _dynamo_graph_capture_for_export(model)(**inputs)
    return module


def own_name(name: str) -> str:
    """Return the model's name of a parameter, from that in the captured module."""
    return name.removeprefix(_ROOT)
