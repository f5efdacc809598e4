"""Clip weights: a smaller range, finer steps, and the few largest weights saturate.

Each row's ratio of the range to its largest magnitude is the one with the least error of the outputs.
Source: clipping ranges searched on output error, as in OmniQuant (arXiv 2308.13137) and AWQ (2306.00978).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qgraph.calibration.method import LinearLayer, Method, Seen, Solution
from qgraph.numerics import fake_quant


def solve(layer: LinearLayer, seen: Seen, options: Mapping[str, Any]) -> Solution:
    """Return the weights, each row clipped at the best of `steps` ratios from `lowest` to 1."""
    assert seen.gram is not None, "clip looks at the Gram matrix"
    wide = layer.weight.detach().float()
    largest = wide.abs().amax(-1, keepdim=True)
    best, error = wide, torch.full_like(largest, torch.inf)
    chosen = torch.ones_like(largest)
    lowest, steps = float(options["lowest"]), int(options["steps"])
    for number in range(steps):  # from 1 down: of equal errors the wider range stays
        ratio = 1 - number * (1 - lowest) / (steps - 1)
        clipped = wide.clamp(-ratio * largest, ratio * largest)
        found = _errors(wide, fake_quant(clipped, layer.format, -1), seen.gram)
        better = found < error
        best, error = torch.where(better, clipped, best), torch.where(better, found, error)
        chosen = torch.where(better, ratio, chosen)
    return Solution(weight=best.to(layer.weight.dtype), tensors={"ratio": chosen.squeeze(-1)})


def _errors(weight: Tensor, quantized: Tensor, gram: Tensor) -> Tensor:
    """Return the squared error of each output, [outputs, 1]."""
    lost = weight - quantized
    return ((lost @ gram) * lost).sum(-1, keepdim=True)


CLIP = Method(name="clip", looks=frozenset({"gram"}), solve=solve)
