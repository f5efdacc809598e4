"""What `nn.Module` keeps to itself: the compiled call, and parameters behind a property."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_Call = Callable[..., Any]
# Names of children that wrappers have and the wrapped model has not: those of torch.compile, of
# activation checkpointing and of a capture.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_export_root")


def relative_path(written: str) -> str:
    """Return a module's path as Dynamo writes it, without the variable it begins with and wrappers.

    `L['self']._modules['layers']._modules['0']` and `L['args'][0].layers[0]` are `layers.0`.
    """
    path = re.sub(r"_modules\[['\"]([^'\"]*)['\"]\]", r"\1", written.split("@")[0])
    path = re.sub(r"^(L|G)\[['\"][^'\"]*['\"]\](\[\d+\])?", "", path)
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    parts = [part for part in path.split(".") if part and part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == ["self"] else parts)


def compiled_call(model: nn.Module) -> _Call | None:
    """Return what runs in place of `model`'s own code when it is called, None if it is not compiled."""
    return model._compiled_call_impl


def set_compiled_call(model: nn.Module, call: _Call | None) -> None:
    """Make `call` what runs when `model` is called; None: its own code."""
    model._compiled_call_impl = call


def plain_call(model: nn.Module) -> _Call:
    """Return what runs when `model` is called and is not compiled: its hooks and its forward."""
    call: _Call = model._call_impl
    return call


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that `module` itself holds, those behind a property too; it can be written."""
    return module._parameters


def wrapped_by_compile(model: object) -> nn.Module | None:
    """Return the module in what `torch.compile(module)` gives, None if it is something else."""
    found = getattr(model, _WRAPPERS[0], None)
    return found if isinstance(found, nn.Module) else None


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that `module` itself holds; it can be written."""
    return module._buffers


def version(value: Tensor) -> int:
    """Return how often the memory of `value` was written to; views of one tensor count together."""
    return 0 if value.is_inference() else value._version


def pass_for_parameter(value: Tensor) -> None:
    """Let whoever asks whether `value` is a Parameter be told that it is."""
    vars(value)["_is_param"] = True
