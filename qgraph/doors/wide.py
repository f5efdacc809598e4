"""What `module.weight` gives of a parameter stored in a narrower dtype: its cast, and edits that are kept.

    module.weight.mul_(0),  nn.init.zeros_(module.weight),  module.weight.data[:4] = rows

An edit in place, through a view too, is made on the cast and then rounded into what is stored. What
belongs to a parameter and not to its numbers (`grad`, `requires_grad`, hooks, names given to it) is
the stored parameter's. Compiled code never sees this class: it reads a plain cast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.compat import modules
from qgraph.errors import ModelError

_Function = Callable[..., Any]
_TENSOR: Any = Tensor
_SLOTS = ("__get__", "__set__", "__delete__")
# Of a parameter rather than of its numbers.
_STORED: frozenset[Any] = frozenset(
    {
        Tensor.register_hook, Tensor.register_post_accumulate_grad_hook,
        *(getattr(part, slot) for part in (_TENSOR.grad, _TENSOR.requires_grad) for slot in _SLOTS),
    }
)  # fmt: skip


class Cast:
    """A stored parameter and its cast, of which `Wide` tensors are views."""

    def __init__(self, stored: nn.Parameter, dtype: torch.dtype) -> None:
        self.stored, self.values = stored, stored.to(dtype)
        self._note()

    def refresh(self, *, anew: bool) -> None:
        """Take over what was stored since the cast was made; `anew` even if nobody counted that.

        Raises: ModelError if what is stored has another shape now.
        """
        if self.stored.shape != self._shape:
            raise ModelError(
                f"this weight was read as {list(self._shape)} and has become {list(self.stored.shape)}",
                "read it from its module again",
            )
        if anew or modules.version(self.stored) != self._stored_version:
            with torch.no_grad():
                self.values.detach().copy_(self.stored)
            self._note()

    def keep(self, *, written: bool) -> None:
        """Store the cast, if it was `written` to, known or counted."""
        if self.values.shape != self._shape:
            self.stored.data = self.values.detach().to(self.stored.dtype)
        elif written or modules.version(self.values) != self._version:
            with torch.no_grad():
                self.stored.copy_(self.values)
        self._note()

    def replace(self, values: Tensor) -> None:
        """Store other numbers, of any shape: `weight.data = values`."""
        self.stored.data = values.detach().to(self.stored.device, self.stored.dtype, copy=True)
        self.values.data = values.detach().to(self.values.dtype)
        self._note()

    def shows(self, value: object) -> bool:
        """Whether a tensor lies in the memory of the cast."""
        if not isinstance(value, Tensor) or value.is_meta or value.is_sparse:
            return False
        memory = value.untyped_storage().data_ptr()
        return memory != 0 and memory == self.values.untyped_storage().data_ptr()

    def _note(self) -> None:
        self._shape, self._version = self.values.shape, modules.version(self.values)
        self._stored_version = modules.version(self.stored)


class Wide(Tensor):
    """A view of the cast of a stored parameter.

    The one that a module gives passes for the parameter itself; what is computed of it (`data`,
    `detach`, a row) is a tensor of its own, and only its numbers are the cast's.
    """

    _cast: Cast
    _plain: Tensor
    _whole: bool  # it passes for the parameter

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(Tensor, name) or not self._whole:
            super().__setattr__(name, value)
        else:
            setattr(self._cast.stored, name, value)

    def __getattr__(self, name: str) -> Any:
        if vars(self).get("_whole"):
            return getattr(self._cast.stored, name)
        raise AttributeError(f"'Tensor' object has no attribute '{name}'")

    @classmethod
    def __torch_function__(
        cls,
        function: _Function,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Wide) else None
        if first is not None and first._whole:
            if (found := _OF_A_PARAMETER.get(function)) is not None:
                return found(first, *_plain(args[1:]), **_plain(given))
            if function in _STORED:
                return function(first._cast.stored, *_plain(args[1:]), **given)
        views = list(_views([*args, *given.values()]))
        casts = list(dict.fromkeys(view._cast for view in views))
        written = _written(function, args, given)
        for cast in casts:
            cast.refresh(anew=cast in written)
        if function == _TENSOR.data.__get__:
            function = Tensor.detach  # the same, and what is written there is counted
        result = function(*_plain(args), **_plain(given))
        for cast in casts:
            cast.keep(written=cast in written)
        if function in (Tensor.numpy, Tensor.__array__):
            result.flags.writeable = False  # nobody would see what is written there
        # An edit in place gives what was edited.
        same = next((view for view in views if view._plain is result), None)
        return _wrap(result, casts) if same is None else same


def _copy(wide: Wide, memo: object) -> nn.Parameter:
    return nn.Parameter(wide._plain.detach().clone(), wide._cast.stored.requires_grad)


def _freeze(wide: Wide, requires_grad: bool = True) -> Wide:
    wide._cast.stored.requires_grad_(requires_grad)
    return wide


# What the parameter answers in other words than its numbers would. An optimizer, which asks for a leaf,
# must be given what is stored.
_OF_A_PARAMETER: dict[Any, _Function] = {
    _TENSOR.data.__set__: lambda wide, values: wide._cast.replace(values),
    _TENSOR.grad_fn.__get__: lambda wide: None,
    _TENSOR.is_leaf.__get__: lambda wide: False,
    Tensor.requires_grad_: _freeze,
    Tensor.__deepcopy__: _copy,
}


def read_wide(stored: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """Return `stored` in `dtype`: in compiled code its cast, elsewhere one whose edits are kept."""
    if stored.dtype == dtype:
        return stored
    if torch.compiler.is_compiling():
        return stored.to(dtype)
    cast = Cast(stored, dtype)
    found = _view(cast.values, cast, whole=True)
    modules.pass_for_parameter(found)
    return found


def stored_of(value: Tensor) -> nn.Parameter | None:
    """Return the stored parameter that `value` is to its module; None for another tensor."""
    return value._cast.stored if isinstance(value, Wide) and value._whole else None


def own_parameter(value: Tensor) -> nn.Parameter | None:
    """Return a parameter of the numbers that a view of a cast shows; None for another tensor."""
    if not isinstance(value, Wide):
        return None
    return nn.Parameter(value._plain.detach().clone(), value._plain.requires_grad)


def _view(plain: Tensor, cast: Cast, *, whole: bool = False) -> Wide:
    found = plain.as_subclass(Wide)
    vars(found).update(_cast=cast, _plain=plain, _whole=whole)
    return found


def _wrap(result: Any, casts: Sequence[Cast]) -> Any:
    """Return a result such that edits of what shows a cast are kept."""
    if type(result) in (list, tuple):
        return type(result)(_wrap(item, casts) for item in result)
    cast = next((cast for cast in casts if cast.shows(result)), None)
    return result if cast is None else _view(result, cast)


def _plain(value: Any) -> Any:
    if isinstance(value, Wide):
        return value._plain
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def _views(values: Sequence[Any]) -> Iterator[Wide]:
    for value in values:
        if isinstance(value, Wide):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _views(value)


def _written(function: _Function, args: Sequence[Any], given: Mapping[str, Any]) -> set[Cast]:
    """Return the casts that a function writes into, by how torch names those that do."""
    name = getattr(function, "__name__", "")
    own = name.startswith("__")
    targets = [given["out"]] if "out" in given else []
    if name == "__setitem__" or (name.startswith("__i") if own else name.endswith("_")):
        targets += args[:1]
    return {view._cast for view in _views(targets)}
