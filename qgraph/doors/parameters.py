"""Parameters stored in one dtype and multiplied in another.

LayerCast: weights lie in bf16, and each use casts them to fp32. The cast is in the captured graph,
so that a compiler fuses it and the backward does not keep what it gives. Source: arXiv 2506.09501.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from qgraph.compat import modules
from qgraph.doors.wide import own_parameter, read_wide, stored_of
from qgraph.errors import QGraphWarning
from qgraph.ops import state
from qgraph.policy import ParameterPolicy, names_module

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MADE = "_qgraph_reads_wide"  # in the classes made here: of what class, which attributes, the dtype


def store_parameters(model: nn.Module, policy: ParameterPolicy) -> None:
    """Bring `model`'s parameters into the storage dtype, in place; each stays the same Parameter.

    With a wider compute dtype: those of every module that holds a matrix and is not kept. Such a
    module's attribute, `module.weight`, then gives the cast tensor, whose edits are stored (see
    `Wide`); `parameters()`, `state_dict` and `save_pretrained` give what is stored. Modules and
    parameters put into the model later are stored alike. Without: the whole model, buffers too.
    """
    low, wide = DTYPES[policy.storage], DTYPES[policy.compute]
    if low == wide:
        model.to(low)
        return
    for glob in policy.keep:
        if not any(names_module(glob, name) for name, _ in model.named_modules()):
            problem = f"parameters.keep: no module is called '{glob}'"
            warnings.warn(problem, QGraphWarning, stacklevel=3)
    _store(model, "", _Storage(low=low, wide=wide, keep=policy.keep, root=ref(model)))
    _watch()


@dataclass(frozen=True, kw_only=True)
class _Storage:
    """How the parameters of the model `root` are stored: by the keys of a policy's `parameters`."""

    low: torch.dtype
    wide: torch.dtype
    keep: tuple[str, ...]
    root: ref[nn.Module]


def _store(part: nn.Module, path: str, storage: _Storage) -> None:
    """Store the parameters of `part`, which is or will be at `path` of its model."""
    named = [(f"{path}.{name}".strip("."), module) for name, module in part.named_modules()]
    kept = {
        id(parameter)
        for glob in storage.keep
        for name, module in named
        if names_module(glob, name)
        for parameter in module.parameters()
    }  # a shared one is kept everywhere
    for _, module in named:
        state.STORED[module] = storage
        own = {name: p for name, p in modules.parameters_of(module).items() if p is not None}
        names: list[str] = []
        if any(p.numel() > max(p.shape, default=1) for p in own.values()):
            names = [n for n, p in own.items() if id(p) not in kept and p.is_floating_point()]
        for name in names:
            own[name].data = own[name].data.to(storage.low)
        _read_as(module, names, storage.wide)


def _read_as(module: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Let `module` give its parameters of these names in `dtype`, and if it has a dtype, name that."""
    base, known, _ = vars(type(module)).get(_MADE, (type(module), (), dtype))
    parts = {*known, *names}
    if isinstance(getattr(base, "dtype", None), property):
        # Hugging Face models make masks of it, cast inputs to it, and write it in the config: a
        # checkpoint is then loaded as wide, and what was not stored narrow keeps its bits.
        parts.add("dtype")
    if parts != {*known}:
        module.__class__ = _reading_wide(base, tuple(sorted(parts)), dtype)


@functools.cache
def _reading_wide(
    base: type[nn.Module], parts: tuple[str, ...], dtype: torch.dtype
) -> type[nn.Module]:
    """Return a class of the same name as `base` whose attributes `parts` are of, or are, `dtype`."""
    how = (base, parts, dtype)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, _MADE: how}
    read = {name: property(*_accessors(name, dtype)) for name in parts if name != "dtype"}
    own = {"dtype": property(lambda _: dtype)} if "dtype" in parts else {}
    return type(base.__name__, (base,), {**own, **read, **names, "__reduce_ex__": _reduce})


def _accessors(name: str, dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[..., None]]:
    def read(module: nn.Module) -> Any:
        stored = modules.parameters_of(module)
        if name not in stored:  # a hook computes it, from what it took the parameter for
            return _found_in(module, name)
        found = stored[name]
        return None if found is None else read_wide(found, dtype)

    def write(module: nn.Module, value: object) -> None:
        vars(module)[name] = value

    return read, write


def _found_in(module: nn.Module, name: str) -> Any:
    """Return what was put in the place of a parameter.

    Raises: AttributeError if nothing was.
    """
    if name in vars(module):
        return vars(module)[name]
    raise AttributeError(f"'{type(module).__name__}' object has no attribute '{name}'")


def _reduce(module: nn.Module, protocol: int) -> Any:
    """Let a copy, or what is unpickled, read its parameters as `module` does."""
    made: Any = next(cls for cls in type(module).__mro__ if _MADE in vars(cls))
    function, arguments, *rest = super(made, module).__reduce_ex__(protocol)
    if made is not type(module) or arguments != (made,):  # it has a way of its own
        return (function, arguments, *rest)
    return (_new, vars(made)[_MADE], *rest)


def _new(*how: Any) -> nn.Module:
    made: Any = _reading_wide(*how)
    return made.__new__(made)  # type: ignore[no-any-return]


def _watch() -> None:
    """Look at what is put into modules from now on: torch has hooks for that, of the whole process."""
    if not state.WATCHING:
        take: Any = _take_parameter  # a hook may return what is to be registered
        state.WATCHING.append(register_module_parameter_registration_hook(take))
        state.WATCHING.append(register_module_module_registration_hook(_take_module))


def _take_parameter(module: nn.Module, name: str, value: Tensor) -> Tensor | None:
    """Store narrow what replaces a narrow parameter; share the stored one where its cast is given."""
    stored = stored_of(value)
    if stored is not None:
        _read_as(module, [name], value.dtype)
        return stored
    own = own_parameter(value)
    found = value if own is None else own
    _, parts, _ = vars(type(module)).get(_MADE, (None, (), None))
    storage: _Storage | None = state.STORED.get(module)
    if parts and storage is not None and found.is_floating_point():
        if name in parts:
            found.data = found.data.to(storage.low)
        elif found.dtype == storage.low:  # a stored one, under another name
            _read_as(module, [name], storage.wide)
    return found


def _take_module(parent: nn.Module, name: str, value: nn.Module | None) -> None:
    """Store the parameters of a module that is put into a model whose parameters are."""
    storage: _Storage | None = state.STORED.get(parent)
    root = storage.root() if storage is not None else None
    if value is None or storage is None or root is None or value in state.STORED:
        return
    path = next((path for path, module in root.named_modules() if module is parent), None)
    if path is not None:
        _store(value, f"{path}.{name}", storage)
