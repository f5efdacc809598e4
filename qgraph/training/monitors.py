"""Watching a run: a policy's monitors, their numbers, and when they trip."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qgraph.errors import PolicyError
from qgraph.policy import Monitor
from qgraph.training.signals import loss_deviations


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A monitor whose number is above its limit, in words."""

    monitor: Monitor
    value: float
    text: str


class Monitors:
    """The monitors of one run.

    Raises: PolicyError if a monitor watches what the model does not give.
    """

    def __init__(self, monitors: Sequence[Monitor], model: nn.Module) -> None:
        self._monitors = tuple(monitors)
        window = max((m.window for m in monitors if m.watch == "loss_spike"), default=1)
        self._losses: deque[float] = deque(maxlen=window)
        names = set(inspect.signature(model.forward).parameters)
        for monitor in monitors:
            gives_logits = "labels" in names and hasattr(model, "config")
            if monitor.watch == "logit_sharpness" and not gives_logits:
                raise PolicyError(
                    monitor.place,
                    f"{monitor.key}.watch",
                    f"{type(model).__name__} takes no labels and gives no logits: no sharpness to watch",
                    "remove the monitor, or use a Hugging Face model with a head",
                )

    @property
    def watches_products(self) -> bool:
        """Whether any looks at products of wgrad."""
        return any(monitor.watch == "wgrad_error" for monitor in self._monitors)

    @property
    def watches_loss(self) -> bool:
        """Whether any looks at the loss."""
        return any(monitor.watch == "loss_spike" for monitor in self._monitors)

    def due(self, step: int, watch: str) -> bool:
        """Whether a monitor looks at `watch` in the step numbered `step`, from 1."""
        return any(m.watch == watch and step % m.every == 0 for m in self._monitors)

    def check(self, step: int, numbers: Mapping[str, float | None], where: str = "") -> list[Trip]:
        """Hold the numbers of the step, by what is watched, against the limits; take in its loss.

        `where` is the place of the largest wgrad error.

        Raises: PolicyError if a number that is due is missing.
        """
        found = []
        for monitor in self._monitors:
            if step % monitor.every:
                continue
            key = "loss" if monitor.watch == "loss_spike" else monitor.watch
            value = numbers.get(key)
            if value is None:
                raise _missing(monitor, step)
            if monitor.watch == "loss_spike":
                value = loss_deviations(value, [*self._losses], monitor.window)
            if value > monitor.above or math.isnan(value):
                at = f" ({where})" if where and monitor.watch == "wgrad_error" else ""
                text = (
                    f"{monitor.name}: {_words(monitor, value)}{at}, the limit is {monitor.above:g}"
                )
                found.append(Trip(monitor=monitor, value=value, text=text))
        loss = numbers.get("loss")
        if loss is not None and math.isfinite(loss):
            self._losses.append(loss)
        return found

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know, as plain data."""
        return {"losses": [*self._losses]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._losses.clear()
        self._losses.extend(state["losses"])


def _words(monitor: Monitor, value: float) -> str:
    match monitor.watch:
        case "loss_spike":
            return f"the loss is {value:.1f} standard deviations above the mean"
        case "logit_sharpness":
            return f"logit sharpness is {value:.3g}"
        case _:
            return f"the relative error of a weight's gradient is {value:.3g}"


def _missing(monitor: Monitor, step: int) -> PolicyError:
    what, fix = {
        "loss_spike": ("no loss", "call run.step(loss), or pass labels to the model"),
        "logit_sharpness": ("no logits with labels", "pass labels to the model"),
    }.get(monitor.watch, ("no quantized wgrad", "quantize wgrad of a linear layer for as long"))
    return PolicyError(
        monitor.place, f"{monitor.key}.watch", f"step {step} gave {what} to watch", fix
    )
