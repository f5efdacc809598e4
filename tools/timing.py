"""Timing models against each other in one process, alternating, so that the machine's mood cancels."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgraph.compat import inductor

StepFunction = Callable[[], None]


@dataclass
class Timing:
    """Times of one model, in seconds; memory in bytes above what was held before the step."""

    first_call: float = 0.0
    steps: list[float] = field(default_factory=list)
    peak_memory: int = 0

    @property
    def median(self) -> float:
        """The median step."""
        return statistics.median(self.steps)


def training_step(model: nn.Module, inputs: Mapping[str, Any]) -> StepFunction:
    """Return a function that runs one forward and backward and drops the gradients."""

    def step() -> None:
        model(**inputs).loss.backward()
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def time_steps(
    steps: Mapping[str, StepFunction], rounds: int, say: Callable[[str], None]
) -> dict[str, Timing]:
    """Time each step function: its first call on empty caches, then `rounds` alternating rounds."""
    timings = {name: Timing() for name in steps}
    warm_up()
    for name, step in steps.items():
        say(f"first call of {name}")
        with tempfile.TemporaryDirectory() as folder, inductor.fresh_cache(folder):
            timings[name].first_call = _seconds(step)
        step()
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, step in steps.items():
            timings[name].steps.append(_seconds(step))
    for name, step in steps.items():
        timings[name].peak_memory = _peak_memory(step)
    return timings


def alternate(steps: Sequence[StepFunction], rounds: int) -> list[list[float]]:
    """Return the seconds of each step function, run in turns after one untimed turn."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, found in zip(steps, times, strict=True):
            seconds = _seconds(step)
            if number:
                found.append(seconds)
    return times


def over(steps: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the quartiles of `steps` over `others`, round by round: the middle one is the ratio.

    A machine that slows down for some rounds changes both sides of a round.
    """
    ratios = [step / other for step, other in zip(steps, others, strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else 3 * ratios


def warm_up() -> None:
    """Compile a small model, so that no first call pays for starting the compiler itself."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    torch.compile(model)(torch.randn(8, 16)).sum().backward()


def _seconds(step: StepFunction) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _peak_memory(step: StepFunction) -> int:
    """Return the most memory torch's allocator held for `step`, above what it held before, in bytes.

    What the process takes from the system is more, and varies from run to run by what the C library
    keeps for later.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it begins and ends
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    totals = [
        e["args"] for e in sorted(events, key=lambda e: e.get("ts", 0)) if e["name"] == "[memory]"
    ]
    if not totals:
        return 0
    held = totals[0]["Total Allocated"] - totals[0]["Bytes"]
    return int(max(total["Total Allocated"] for total in totals) - held)
