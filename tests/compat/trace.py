"""A function's graph, without a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def graph_of(function: Callable[..., Any], table: dict[Any, Any], inputs: list[Any]) -> GraphModule:
    """Return the ops that `function` computes, taken apart as `table` says."""
    return make_fx(function, table)(*inputs)
