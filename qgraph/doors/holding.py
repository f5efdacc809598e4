"""What is put around a compiled call: each sees to one thing that a graph alone cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from qgraph.errors import QGraphWarning
from qgraph.passes import Report


def follow_blocks(
    compiled: Callable[[], Callable[..., Any]],
    model: nn.Module,
    report: Report,
    known: Mapping[str, int],
) -> Callable[..., Any]:
    """Return the compiled call, compiled anew where a stack has another number of blocks than before.

    The last blocks are then others, and a graph that is left from before does not know.
    """
    call = compiled()
    stacks: list[Any] = [model.get_submodule(path) for path in known if "#" not in path]
    counts = [len(stack) for stack in stacks]

    def held(*args: Any, **kwargs: Any) -> Any:
        nonlocal call, counts
        now = [len(stack) for stack in stacks]
        if now != counts:
            counts = now
            report.products.clear()
            call = compiled()
        return call(*args, **kwargs)

    return held


def hold_coverage(call: Callable[..., Any], report: Report) -> Callable[..., Any]:
    """Return `call` such that a training step after which more is known checks the coverage.

    Dynamo then knows every graph of the forward, and with each its backward.
    """
    checked: object = None

    def held(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        result = call(*args, **kwargs)
        known = (report.graphs, len(report.elsewhere))
        if known != checked and torch.is_grad_enabled():
            report.check()
            checked = known
        return result

    return held


def ask_for_run(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `call` such that the first training step says that nothing counts steps."""
    asked = False

    def warned(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        if not asked and torch.is_grad_enabled():
            asked = True
            warnings.warn(
                f"policy {name} has a schedule or monitors, and nothing counts the steps of this run: "
                "nothing will be switched or watched. Use qgraph.QGraphCallback in Trainer, or "
                "qgraph.Run(model, steps=...) in a loop of your own",
                QGraphWarning,
                stacklevel=2,
            )
        return call(*args, **kwargs)

    return warned
