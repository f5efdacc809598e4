"""Tensors that have shapes and no numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    log,
)

__all__ = ["FakeTensor", "FakeTensorMode", "NeedsNumbers", "as_cpu", "log", "mode_of", "new_mode"]

# What is raised where the values of tensors decide.
NeedsNumbers = (DataDependentOutputException, DynamicOutputShapeException)


def new_mode() -> FakeTensorMode:
    """Return a mode in which tensors are made without numbers, and may meet others that have some."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def mode_of(value: Any) -> FakeTensorMode:
    """Return the mode that a fake tensor is of."""
    mode: FakeTensorMode = value.fake_mode
    return mode


def as_cpu(mode: FakeTensorMode, value: Tensor) -> Tensor:
    """Return a tensor of `mode` that looks as `value` would on a CPU; numbers are neither read nor kept."""
    meta = value if value.is_meta else value.to("meta")
    return FakeTensor(mode, meta, torch.device("cpu"))


@contextmanager
def without_log() -> Iterator[None]:
    """Give a context in which torch does not print the traceback of an op that raises on shapes alone.

    What it raises says as much.
    """
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
