"""Amax histories of delayed scaling: kept in a buffer of the model, so that checkpoints have them.

A graph names a history by two numbers: the store, of one compiled model in this process, and the
row in its buffer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
    known = dict(model.named_buffers(recurse=False)).get(BUFFER)
    if known is None or known.shape != (rows, length):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        model.register_buffer(BUFFER, torch.zeros(rows, length, device=device))
    number = next(state.STORE_NUMBERS)
    state.STORES[number] = model
    return number


def row_of(module: int, role: str, product: int, operand: int) -> int:
    """Return the row of an operand: module by number, product counted within module and role."""
    place = (module * len(ROLES) + ROLES.index(role)) * PRODUCTS + product % PRODUCTS
    return 2 * place + operand


def delayed_amax(x: Tensor, store: int, row: int, length: int, update: bool) -> Tensor:
    """Return the largest magnitude of the last `length` steps, this one left out; then note this one's.

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
    with torch.no_grad():
        history: Tensor = model.get_buffer(BUFFER)[row, :length]
        past = torch.where(history.isfinite(), history, 0.0).amax().float()
        if update:
            history[1:] = history[:-1].clone()
            history[0] = x.abs().amax() if x.numel() else 0.0
            past = torch.where(history[0].isfinite(), past, history[0].float())
    return past
