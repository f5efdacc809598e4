"""Numbers that decide what a run does must be the same in every process of it."""

from __future__ import annotations

import torch
from torch import distributed, nn


def mean_over_processes(value: float | None, model: nn.Module) -> float | None:
    """Return the mean of `value` over the processes of a run; None where one has none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    if distributed.get_world_size() == 1:
        return value
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    missing = float("nan") if value is None else value
    known = torch.tensor(
        [missing if value is not None else 0.0, float(value is None)],
        dtype=torch.float32,
        device=device,
    )
    distributed.all_reduce(known)
    if known[1] > 0:
        return None
    return float(known[0]) / distributed.get_world_size()
