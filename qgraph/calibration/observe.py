"""What linear layers read while a model runs on batches: statistics, not the batches themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.calibration.method import Look, Seen


def observe(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Mapping[str, Any]],
    looks: frozenset[Look],
) -> dict[str, Seen]:
    """Return what the modules of these names read over all batches; the model runs as it is.

    In evaluation mode, without gradients; the mode is put back.
    """
    training = model.training
    with _listening(model, names, looks) as seen, torch.no_grad():
        model.eval()
        try:
            for batch in batches:
                model(**batch)
        finally:
            model.train(training)
    return seen


@contextmanager
def _listening(
    model: nn.Module, names: Iterable[str], looks: frozenset[Look]
) -> Iterator[dict[str, Seen]]:
    seen = {name: Seen() for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(_note, one, looks))
        for name, one in seen.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _note(
    seen: Seen, looks: frozenset[Look], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
    seen.count += len(rows)
    if "absmax" in looks:
        found = rows.abs().amax(0)
        seen.absmax = found if seen.absmax is None else torch.maximum(seen.absmax, found)
    if "gram" in looks:
        gram = rows.T @ rows
        seen.gram = gram if seen.gram is None else seen.gram + gram
