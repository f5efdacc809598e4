"""Triton, where it is installed; else stand-ins, so that kernels' files can be read and not run."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any


def why_no_triton() -> str | None:
    """Return why there are no GPU kernels, or None."""
    return None if _THERE else "Triton is not installed"


def _undecorated(function: Any = None, **_: Any) -> Any:
    """Stand for `triton.jit`, with options or without."""
    return function if function is not None else _undecorated


_THERE = importlib.util.find_spec("triton") is not None
jit: Any = _undecorated
tl: Any = SimpleNamespace(constexpr=lambda value: value)
philox: Any = None
if _THERE:
    jit = importlib.import_module("triton").jit
    tl = importlib.import_module("triton.language")
    philox = importlib.import_module("triton.language.random").philox_impl
