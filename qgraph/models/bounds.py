"""How large a model may be that a config describes: told before anything of that size is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from qgraph.errors import ModelError

MOST_PARTS = 10_000  # layers, blocks or experts that one number of a config may ask for
MOST_TENSORS = 100_000
MOST_ELEMENTS = 10**14
# A config class may make a list as long as this number before any model is built.
_PARTS = re.compile(r"(layers?|blocks?|depths?|stages|experts|repeats|groups?|group_num)$")


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Check the numbers of a config.json that say how many parts a model has.

    Raises: ModelError naming the key.
    """
    for key, value in _numbers("", config):
        if _PARTS.search(key.rstrip("0123456789[]")) and value > MOST_PARTS:
            raise ModelError(
                f"{name}: config.json says {key}: {value:g}, more than {MOST_PARTS}",
                f"correct {key} in config.json",
            )


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    # Not by recursion: a file may be nested as deeply as JSON can be read.
    todo = [(path, value)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(f"{path}.{key}" if path else str(key), v) for key, v in value.items()]
        elif isinstance(value, list):
            todo += [(f"{path}[{i}]", v) for i, v in enumerate(value)]
        elif isinstance(value, (int, float)):
            yield path, value


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most tensors and elements a model may have, and whose limit that is."""

    tensors: int = MOST_TENSORS
    elements: int = MOST_ELEMENTS
    whose: str = "any model"
    fix: str = "correct the sizes in config.json"


@contextmanager
def bounded(name: str, bound: Bound) -> Iterator[None]:
    """Give a context in which a model is built of shapes alone, and stopped where it grows too large.

    Raises: ModelError if more tensors or elements are made, or the model cannot be built.
    """
    try:
        with torch.device("meta"), _Counting(name, bound):
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name}: no model can be built from its config: {first_line(error)}", bound.fix
        ) from error


class _Counting(TorchFunctionMode):
    """Counts what is made, and stops it."""

    def __init__(self, name: str, bound: Bound) -> None:
        super().__init__()
        self._model, self._bound = name, bound
        self._tensors = self._elements = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS and isinstance(made, torch.Tensor):
            self._tensors += 1
            self._elements += made.numel()
            for most, counted, what in (
                (self._bound.tensors, self._tensors, "tensors"),
                (self._bound.elements, self._elements, "elements"),
            ):
                if counted > most:
                    raise ModelError(
                        f"{self._model}: its config describes a model of more than {most:.3g} {what}, the "
                        f"limit of {self._bound.whose}",
                        self._bound.fix,
                    )
        return made


_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full)


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line, and in the next where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 1 + lines[0].endswith(":")]) if lines else ""
    plain = type(error) in (OSError, ValueError, RuntimeError) and bool(text)
    return text if plain else f"{type(error).__name__} {text}".rstrip()
