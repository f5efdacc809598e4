"""Amax histories of delayed scaling: kept in a buffer of the model, so that checkpoints have them.

A graph names a history by two numbers: the store, of one compiled model in this process, and the
row in its buffer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from qgraph.compat import modules
from qgraph.errors import GraphError
from qgraph.ops import state
from qgraph.policy import ROLES

BUFFER = "qgraph_amax_history"
PRODUCTS = 4  # of one role in one module that have rows of their own; more share them


def make_store(model: nn.Module, modules: Iterable[str], length: int) -> int:
    """Give `model` a buffer of `length` past amaxes for each operand of each module's products.

    A buffer of the same shape that is there already, from a checkpoint, keeps its numbers. Returns
    the number graphs know it by.
    """
    rows = 2 * PRODUCTS * len(ROLES) * len(list(modules))
    known = history_of(model)
    if known is None or known.shape != (rows, length):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        model.register_buffer(BUFFER, torch.zeros(rows, length, device=device))
    number = next(state.STORE_NUMBERS)
    state.STORES[number] = model
    _count_steps()
    return number


def _count_steps() -> None:
    """Have every optimizer's step counted, once in a process."""
    if not state.OPTIMIZER_STEPS:
        state.OPTIMIZER_STEPS["taken"] = 0
        register_optimizer_step_post_hook(_count)


def _count(*_: object) -> None:
    state.OPTIMIZER_STEPS["taken"] += 1


def _history(model: nn.Module) -> Tensor:
    """Return the histories of a model in float32, also where the model was brought into another dtype."""
    found: Tensor = model.get_buffer(BUFFER)
    if found.dtype != torch.float32:
        before = state.HISTORIES.get(model)
        rounded = before is not None and torch.equal(before.to(found), found)
        found = before.to(found.device) if before is not None and rounded else found.float()
        modules.buffers_of(model)[BUFFER] = found
    state.HISTORIES[model] = found
    return found


def _now(model: nn.Module) -> tuple[int, int]:
    """Return what changes when an optimizer steps, or parameters are written by hand."""
    first = next(model.parameters(), None)
    return state.OPTIMIZER_STEPS["taken"], modules.version(first) if first is not None else 0


def history_of(model: nn.Module) -> Tensor | None:
    """Return the histories that `model` keeps, a row an operand; None if it keeps none."""
    return dict(model.named_buffers(recurse=False)).get(BUFFER)


def row_of(module: int, role: str, product: int, operand: int) -> int:
    """Return the row of an operand: module by number, product counted within module and role."""
    place = (module * len(ROLES) + ROLES.index(role)) * PRODUCTS + product % PRODUCTS
    return 2 * place + operand


def delayed_amax(x: Tensor, store: int, row: int, length: int, update: bool) -> Tensor:
    """Return the largest magnitude of the last `length` steps, this one left out; then note this one's.

    A step ends when the optimizer steps: its micro-batches, and what checkpointing computes again, have
    one place in the history, and one past.
    0 before the first step, which makes the scale 1. Steps whose largest magnitude is not finite
    do not count, but it is returned for this one. Without `update`, as in evaluation, nothing is noted.

    Shapes: x any -> [].
    Dtypes: -> float32.
    Raises: GraphError if the model that keeps the history is gone, or there never was one.
    Source: Transformer Engine, delayed scaling with the algorithm `max` and margin 0.
    """
    model = state.STORES.get(store)
    if model is None:
        raise GraphError(
            "a delayed range keeps its amax history in a model, and there is none",
            "compile the model with qgraph.compile",
        )
    known: dict[int, tuple[tuple[int, int], Tensor]] = state.PASTS.setdefault(model, {})
    step, (at, past) = _now(model), known.get(row, ((-1, -1), None))
    with torch.no_grad():
        history = _history(model)[row, :length]
        if past is None or at != step:
            past = torch.where(history.isfinite(), history, 0.0).amax().float()
            if update:
                history[1:] = history[:-1].clone()
                history[0] = 0.0
        if update:
            known[row] = step, past
            seen = x.abs().amax().float() if x.numel() else past.new_zeros(())
            history[0] = torch.maximum(history[0], seen.to(history.dtype))
            past = torch.where(seen.isfinite(), past, seen)
    return past.clone()
