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
    from qgraph.backend.jit import QGraphWarning, compile, coverage
    from qgraph.errors import QGraphError
    from qgraph.policy import load_policy

_HOMES = {
    "compile": "qgraph.backend.jit",
    "coverage": "qgraph.backend.jit",
    "QGraphWarning": "qgraph.backend.jit",
    "QGraphError": "qgraph.errors",
    "load_policy": "qgraph.policy",
}
__all__ = ["QGraphError", "QGraphWarning", "compile", "coverage", "load_policy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgraph' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
