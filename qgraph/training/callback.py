"""A Trainer callback that says what the run really computes in."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from torch import nn
from transformers import TrainerCallback

from qgraph.compat import modules
from qgraph.doors import coverage
from qgraph.errors import QGraphWarning
from qgraph.passes import make_totals, report_text


class CoverageCallback(TrainerCallback):
    """Print the coverage table after the first step and log its totals.

    Graphs exist once the first step has run. The log entry goes to `trainer_state.json` with the
    keys `qgraph/products`, `qgraph/quantized` (counts) and `qgraph/flops/<format>` (shares, 0 to 1).
    """

    def __init__(self, width: int = 100) -> None:
        self._width, self._done = width, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make sure, before any work, that the model was compiled by qgraph."""
        coverage(unwrap(kwargs["model"]))
        self._done = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print and log once, after the first step."""
        if self._done or not state.is_world_process_zero:
            return
        self._done = True
        report = coverage(unwrap(kwargs["model"]))
        if report.not_captured and report.entries:
            warnings.warn(
                f"{len(report.not_captured)} weights are in no captured graph and are not quantized: "
                f"{', '.join(sorted(report.not_captured)[:5])}",
                QGraphWarning,
                stacklevel=2,
            )
        if not report.entries:
            warnings.warn(
                "a training step ran and qgraph saw none of its products: nothing is quantized",
                QGraphWarning,
                stacklevel=2,
            )
        sys.stdout.write(report_text(report, self._width))
        shares = make_totals(report.entries)["formats"]
        state.log_history.append(
            {
                "step": state.global_step,
                "qgraph/products": len(report.entries),
                "qgraph/quantized": len(report.quantized),
                **{f"qgraph/flops/{name}": share for name, share in shares.items()},
            }
        )


_WRAPPERS = ("torch", "accelerate", "deepspeed")


def unwrap(model: Any) -> Any:
    """Return the model inside the wrappers of torch, accelerate and DeepSpeed; a user's own is the model."""
    while type(model).__module__.split(".")[0] in _WRAPPERS:
        inner = modules.wrapped_by_compile(model) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model
