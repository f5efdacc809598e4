"""Numbers that tell how a run is doing, from what the model gives anyway."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 5e-4
FEWEST = 10  # losses that a mean and a deviation are of, at least
# A language model's label at one position is the next one's token.
SHIFTED = ("ForCausalLM", "LMHeadModel")


def logit_sharpness(logits: Tensor, labels: Tensor, epsilon: float = EPSILON) -> float:
    """Return how much worse the loss can get when each logit moves a little: a sign of instability.

    Per token 100 (L* - L) / (1 + L), averaged, with L the cross-entropy and L* the largest within
    |delta_i| <= epsilon (|z_i| + 1) of the logits z. L rises with every logit but the label's, so L*
    is at a corner of that box: every logit up by its bound, the label's down. Labels below 0 are left out.

    Shapes: logits [..., C], labels [...].
    Dtypes: any float, int64.
    Source: arXiv 2405.18710 (sharpness in logit space); the corner is exact and replaces its search.
    """
    chosen = labels.reshape(-1)
    rows = logits.reshape(-1, logits.shape[-1])[chosen >= 0].float()
    chosen = chosen[chosen >= 0]
    if not len(chosen):
        return 0.0
    bound = epsilon * (rows.abs() + 1)
    picked = chosen[:, None]
    worst = rows + bound
    worst.scatter_(1, picked, (rows - bound).gather(1, picked))
    loss = functional.cross_entropy(rows, chosen, reduction="none")
    most = functional.cross_entropy(worst, chosen, reduction="none")
    return float((100 * (most - loss) / (1 + loss)).mean())


def sharpness_of(model: nn.Module, result: Any, labels: Any) -> float | None:
    """Return the sharpness of one call of a Hugging Face model; None without logits and labels."""
    logits = result.get("logits") if isinstance(result, dict) else None
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        return None
    with torch.no_grad():
        if type(model).__name__.endswith(SHIFTED):
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        if labels.shape != logits.shape[:-1]:
            return None
        return logit_sharpness(logits, labels)


def loss_deviations(loss: float, before: Sequence[float], window: int) -> float:
    """Return how many standard deviations `loss` lies above the mean of the last `window` before it.

    The deviation is the population's: of these losses, not of what they might be drawn from. 0 while
    fewer than FEWEST are known (fewer than `window` if that is less); infinite for a loss that is not
    finite. `before` holds finite losses.
    """
    losses = before[-window:]
    if not math.isfinite(loss):
        return math.inf
    if len(losses) < min(FEWEST, window):
        return 0.0
    above = loss - statistics.fmean(losses)
    spread = statistics.pstdev(losses)
    if spread == 0:
        return math.inf if above > 0 else 0.0
    return above / spread


def spike_share(losses: Sequence[float], window: int = 50, above: float = 7.0) -> float:
    """Return the share of steps past the first `window` whose loss is a spike.

    That is `above` deviations over those before it, see `loss_deviations`; as a monitor of
    `loss_spike` does, losses that are not finite are spikes and are left out of later means.
    """
    finite: list[float] = []
    spikes = 0
    for step, loss in enumerate(losses):
        if step >= window:
            spikes += loss_deviations(loss, finite, window) > above
        if math.isfinite(loss):
            finite.append(loss)
    return spikes / max(1, len(losses) - window)
