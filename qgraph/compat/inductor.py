"""Inductor: its hooks before code is generated, its table of decompositions, its cache."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_origin

from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor import config, list_mode_options
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache as _fresh_cache
from torch.fx import GraphModule

from qgraph.errors import ModelError

__all__ = [
    "CustomGraphPass",
    "CustomPartitionerFn",
    "compile_graph",
    "config",
    "decomposition_table",
    "fresh_cache",
    "list_mode_options",
]

_Call = Callable[..., Any]
_REWRITE = "torch._inductor.config.joint_custom_pre_pass"
_CUT = "torch._inductor.config.custom_partitioner_fn"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def compile_graph(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    rewrite: CustomGraphPass,
    cut: CustomPartitionerFn | None,
    decompositions: dict[Any, _Call],
    backward: Callable[[_Call], _Call],
    settings: Mapping[str, Any],
) -> _Call:
    """Compile a graph of Dynamo's: `rewrite` sees the joint graph, `cut` makes two of it (None: torch's own).

    `backward` wraps what runs that half. Rewrite, cut and Inductor's `settings` are in the key of its
    cache, which stays on. AOTAutograd's, which would skip them, is off.
    """

    def compile_half(half: GraphModule, given: Sequence[Any], **options: Any) -> Any:
        code = compile_fx_inner(half, given, **options)
        if options.get("is_backward") and isinstance(code, CompiledFxGraph):
            assert code.current_callable is not None, "the half was just compiled"
            code.current_callable = backward(code.current_callable)
        return code

    patches: dict[str, Any] = {**settings, _setting(_REWRITE): rewrite}
    if cut is not None:
        patches[_setting(_CUT)] = cut
    with functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(
            module,
            inputs,
            inner_compile=compile_half,
            config_patches=patches,
            decompositions=decompositions,
        )
    return compiled  # type: ignore[no-any-return]


def settings_of(mode: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return Inductor's settings that torch.compile's `mode` or `options` stand for.

    Raises: ModelError if Inductor has no such mode or option, a value is of another type, or qgraph sets
        it itself.
    """
    if mode is not None and options is not None:
        raise ModelError(
            "mode and options were both given", "give one: options can say what a mode does"
        )
    if mode not in (None, *MODES):
        raise ModelError(f"unknown mode '{mode}'", f"use one of: {', '.join(MODES)}")
    if not isinstance(options or {}, Mapping):
        raise ModelError(
            "options must be a mapping of Inductor's settings", '{"max_autotune": True}'
        )
    given = list_mode_options(mode) if mode else options or {}
    return {_checked(str(key).replace("-", "_"), value): value for key, value in given.items()}


def _checked(key: str, value: Any) -> str:
    known = config.get_config_copy()
    if key in (_setting(_REWRITE), _setting(_CUT)):
        raise ModelError(f"the option {key} is qgraph's own", "leave it out")
    if key == "guard_filter_fn":
        raise ModelError(
            "guard_filter_fn drops guards by which each block has the code of its own policy",
            "leave it out",
        )
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        more = "torch._inductor.list_options() lists them"
        fix = f"did you mean '{near[0]}'? {more}" if near else more
        raise ModelError(f"Inductor has no option '{key}'", fix)
    kind = config.get_type(key)  # type: ignore[attr-defined]  # torch puts it there as it is imported
    if get_origin(kind) is None and not isinstance(value, kind):
        raise ModelError(
            f"the option {key} cannot be {value!r}", f"write {kind.__name__}, as {known[key]!r}"
        )
    return key


def _setting(path: str) -> str:
    return path.rpartition(".")[2]


def decomposition_table() -> dict[Any, _Call]:
    """Return Inductor's table: what it computes instead of an op."""
    table: dict[Any, _Call] = select_decomp_table()
    return table


def fresh_cache(folder: str | None = None) -> AbstractContextManager[Any]:
    """Return a context in which Inductor's cache is empty, as on a new machine; in `folder` it is left."""
    context: AbstractContextManager[Any] = _fresh_cache(dir=folder, delete=folder is None)
    return context


def served() -> tuple[int, int]:
    """Return how many graphs the cache of graphs served, and how many it had not, since `count_anew`."""
    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]


def count_anew() -> None:
    """Forget what was counted."""
    counters.clear()


def cache_folder() -> Path:
    """Return the folder where Inductor keeps what it compiles."""
    return Path(cache_dir())
