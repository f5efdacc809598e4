"""A model-compiler pass for low-precision training.

    qgraph.compile(model, policy="nvfp4")             in place, before Trainer(model=model)
    qgraph.convert(model, "nvfp4", example_inputs)    the rewritten graph, a report, a trainable module
    qgraph.load(directory)                            what `qgraph convert` wrote, ready to train

Names are loaded on first use, so that a policy can be checked without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgraph.doors.artifact import load
    from qgraph.doors.convert import conversion, convert
    from qgraph.doors.jit import compile, coverage
    from qgraph.errors import QGraphError, QGraphWarning
    from qgraph.policy import load_policy
    from qgraph.training.callback import CoverageCallback
    from qgraph.training.checkpoint import CheckpointCallback, last_checkpoint
    from qgraph.training.run import Run
    from qgraph.training.states.optimizer import (
        optimizer_for,
        quantize_optimizer,
        state_bytes,
        unpack_state_dict,
    )
    from qgraph.training.trainer import QGraphCallback

_HOMES = {
    "CheckpointCallback": "qgraph.training.checkpoint",
    "last_checkpoint": "qgraph.training.checkpoint",
    "QGraphCallback": "qgraph.training.trainer",
    "Run": "qgraph.training.run",
    "CoverageCallback": "qgraph.training.callback",
    "convert": "qgraph.doors.convert",
    "conversion": "qgraph.doors.convert",
    "load": "qgraph.doors.artifact",
    "compile": "qgraph.doors.jit",
    "coverage": "qgraph.doors.jit",
    "QGraphWarning": "qgraph.errors",
    "QGraphError": "qgraph.errors",
    "load_policy": "qgraph.policy",
    "optimizer_for": "qgraph.training.states.optimizer",
    "quantize_optimizer": "qgraph.training.states.optimizer",
    "state_bytes": "qgraph.training.states.optimizer",
    "unpack_state_dict": "qgraph.training.states.optimizer",
}
__all__ = [
    "CheckpointCallback", "CoverageCallback", "QGraphCallback", "QGraphError", "QGraphWarning", "Run",
    "compile", "conversion", "convert", "coverage", "last_checkpoint", "load", "load_policy",
    "optimizer_for", "quantize_optimizer", "state_bytes", "unpack_state_dict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgraph' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
