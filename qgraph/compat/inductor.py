"""Inductor: its hooks before code is generated, its table of decompositions, its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache as _fresh_cache
from torch.fx import GraphModule

__all__ = [
    "CustomGraphPass",
    "CustomPartitionerFn",
    "compile_graph",
    "decomposition_table",
    "fresh_cache",
]

_Call = Callable[..., Any]
_REWRITE = "torch._inductor.config.joint_custom_pre_pass"
_CUT = "torch._inductor.config.custom_partitioner_fn"


def compile_graph(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    rewrite: CustomGraphPass,
    cut: CustomPartitionerFn | None,
    decompositions: dict[Any, _Call],
    backward: Callable[[_Call], _Call],
) -> _Call:
    """Compile a graph of Dynamo's: `rewrite` sees the joint graph, `cut` makes two of it (None: torch's own).

    `backward` wraps what runs that half.
    Both are in the key of Inductor's cache, which stays on. AOTAutograd's, which would skip them, is off.
    """

    def compile_half(half: GraphModule, given: Sequence[Any], **options: Any) -> Any:
        code = compile_fx_inner(half, given, **options)
        if options.get("is_backward") and isinstance(code, CompiledFxGraph):
            assert code.current_callable is not None, "the half was just compiled"
            code.current_callable = backward(code.current_callable)
        return code

    patches: dict[str, Any] = {_setting(_REWRITE): rewrite}
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
