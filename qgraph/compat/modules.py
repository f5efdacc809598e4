"""What `nn.Module` keeps to itself: the compiled call, and parameters behind a property."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Call = Callable[..., Any]
# Names of children that wrappers have and the wrapped model has not: those of torch.compile, of
# activation checkpointing and of a capture.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_export_root")


def compiled_call(model: nn.Module) -> Call | None:
    """Return what runs in place of `model`'s own code when it is called, None if it is not compiled."""
    return model._compiled_call_impl


def set_compiled_call(model: nn.Module, call: Call) -> None:
    """Make `call` what runs when `model` is called."""
    model._compiled_call_impl = call


def plain_call(model: nn.Module) -> Call:
    """Return what runs when `model` is called and is not compiled: its hooks and its forward."""
    call: Call = model._call_impl
    return call


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that `module` itself holds, those behind a property too; it can be written."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that `module` itself holds; it can be written."""
    return module._buffers
