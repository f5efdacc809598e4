"""Ways into a compiled model other than calling it: `model.forward(...)`, and its parts called alone.

`generate` calls an encoder by itself, losses call the head. torch runs such calls as they are; here
they run compiled, under the policy of the whole model.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from qgraph.compat import dynamo, modules, watching
from qgraph.doors.audit import Audit

_Call = Callable[..., Any]
_Compile = Callable[[_Call, str], _Call]  # of a part's call, and its path


class Part:
    """What runs when a part of a compiled model is called, and not from within a graph.

    In a call of the model the part itself, which Dynamo follows, but for modules of torch's own.
    """

    def __init__(self, module: nn.Module, path: str, audit: Audit, compile_call: _Compile) -> None:
        self._plain, self._path = modules.plain_call(module), path
        self._audit, self._compile = audit, compile_call
        self._is_followed = dynamo.enters(type(module).forward)
        self._compiled: _Call | None = None

    @watching.passed
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the part."""
        inside = self._audit.inside and (self._is_followed or self._audit.bypasses)
        plain = inside or watching.traced()
        return (self._plain if plain else self._alone())(*args, **kwargs)

    @watching.entered
    def _alone(self) -> _Call:
        if self._compiled is None:
            compiled = self._compile(followed(self._plain), self._path)
            self._compiled = self._audit.hold(compiled, self._plain)
        return self._compiled


class Forward:
    """Stands for a compiled model's `forward`: called by itself, it calls the model.

    A copy of the model, or one that was pickled, has a forward of its own.
    """

    def __init__(self, model: nn.Module, audit: Audit) -> None:
        self._model, self._audit, self._plain = model, audit, model.forward
        functools.update_wrapper(self, model.forward)

    @watching.passed
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, or from within a call of it what it computes."""
        call = self._plain if self._is_asked_for() else self._model
        return call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what torch and accelerate ask of a forward: its code, its function."""
        if name == "_plain":  # nothing is set yet
            raise AttributeError(name)
        return getattr(self._plain, name)

    def _is_asked_for(self) -> bool:
        return (
            torch.compiler.is_compiling()
            or self._audit.inside
            or watching.traced()
            or modules.compiled_call(self._model) is None
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Call:
        """Return the forward of the model's copy."""
        plain = getattr(type(self._model), "forward")  # noqa: B009
        return types.MethodType(plain, memo.get(id(self._model), self._model))

    def __reduce__(self) -> tuple[_Call, tuple[nn.Module, str]]:
        """Return what gives the forward of the model that is unpickled."""
        return getattr, (self._model, "forward")


def followed(call: _Call) -> _Call:
    """Return a module's own call such that Dynamo follows it: not that of torch's modules, as nn.Linear."""
    module: nn.Module = call.__self__  # type: ignore[attr-defined]
    return call if dynamo.enters(type(module).forward) else dynamo.inlined(call)


def open_entrances(model: nn.Module, audit: Audit, compile_call: _Compile) -> None:
    """Have `model.forward` and calls of parts with matrices run under the policy of `model`.

    Parts that something else compiled stay as they are.
    """
    if not isinstance(model.forward, Forward):
        model.forward = Forward(model, audit)
    makers = [m for m in model.modules() if isinstance(m, ParametrizationList)]
    making = {id(part) for maker in makers for part in maker.modules()}  # weights, whoever asks
    for path, module in model.named_modules():
        known = modules.compiled_call(module)
        if id(module) in making:
            continue
        if module is not model and _multiplies(module) and isinstance(known, Part | None):
            modules.set_compiled_call(module, Part(module, path, audit, compile_call))


def close_entrances(model: nn.Module) -> None:
    """Undo `open_entrances`."""
    if isinstance(model.forward, Forward):
        del model.forward
    for module in model.modules():
        if isinstance(modules.compiled_call(module), Part):
            modules.set_compiled_call(module, None)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has matrices that it may multiply by: not one that looks rows up."""
    if isinstance(module, nn.Embedding):
        return False
    return any(is_matrix(value) for value in module.parameters())


def is_matrix(value: Tensor) -> bool:
    """Whether a parameter is most likely a product's operand: [1, 1, 32] is a token or a scale."""
    return value.numel() > max(value.shape, default=1)
