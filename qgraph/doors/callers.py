"""Naming the module that ran an operation, from the lines of code that led there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from weakref import ref

from torch import nn

from qgraph.compat import modules, watching
from qgraph.passes import Elsewhere

_FRAME = re.compile(r"(.*)\((\d+)\): (.*)")  # file(line): function
_SHOWN = 3


class Callers:
    """Names modules of one model, which it does not keep alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = ref(model)

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        model = self._model()
        return model is not None and model.training

    def name(self, operation: watching.Operation) -> Elsewhere:
        """Return which product of the model an operation was.

        The stack gives the classes whose code was under way; of the modules with these classes above
        them, those count whose parameters have the shape of one of the operation's tensors.
        """
        frames = list(_frames(operation.stack))
        found = self._candidates(frames, operation.shapes)
        own = next((frame for frame in frames if frame.is_users), None)
        return Elsewhere(
            module=" or ".join(found[:_SHOWN]) + (" or others" if len(found) > _SHOWN else ""),
            op=operation.name,
            code=f"{PurePath(own.file).name}:{own.line}" if own else "",
        )

    def _candidates(self, frames: list[_Frame], shapes: tuple[tuple[int, ...], ...]) -> list[str]:
        model = self._model()
        if model is None:
            return []
        code = {kind: span for kind in {type(m) for m in model.modules()} if (span := _span(kind))}
        # The classes whose forward was under way, the outermost first.
        chain = [
            kind for frame in reversed(frames) for kind, span in code.items() if frame.within(span)
        ]
        paths = dict(model.named_modules())
        # A user's module of one of these classes may be around the model: what is outermost is dropped.
        for first in range(len(chain)):
            inner = [
                p
                for p, m in paths.items()
                if type(m) is chain[-1] and _below(p, chain[first:], paths)
            ]
            if inner:
                fitting = [path for path in inner if _holds(paths[path], shapes)]
                return fitting or inner
        return []


@dataclass(frozen=True, kw_only=True)
class _Frame:
    file: str
    line: int

    @property
    def is_users(self) -> bool:
        return not {"torch", "qgraph"} & {*PurePath(self.file).parts}

    def within(self, span: tuple[str, int, int]) -> bool:
        return self.file == span[0] and span[1] <= self.line <= span[2]


def _frames(stack: tuple[str, ...]) -> Iterator[_Frame]:
    for text in stack:
        if match := _FRAME.fullmatch(text):
            yield _Frame(file=match[1], line=int(match[2]))


def _span(kind: type[nn.Module]) -> tuple[str, int, int] | None:
    """Return the file and the lines of a class's forward."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    if code is None:
        return None
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return code.co_filename, min(lines), max(lines)


def _below(path: str, chain: list[type], paths: dict[str, nn.Module]) -> bool:
    """Whether the modules above `path` are of the classes of `chain`, in this order."""
    parts = path.split(".") if path else []
    above = [type(paths[".".join(parts[:count])]) for count in range(len(parts) + 1)]
    rest = iter(above)
    return all(kind in rest for kind in chain)


def _holds(module: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> bool:
    known = {tuple(p.shape) for p in modules.parameters_of(module).values() if p is not None}
    return any(shape in known or shape[::-1] in known for shape in shapes if shape)
