"""One training run: what counts its steps, switches its policy, watches it and writes it down."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.doors.jit import PolicyLike, compile, compiled_by_us, enter_stage, replace_call
from qgraph.errors import ModelError, PolicyError
from qgraph.ops import make_recorder
from qgraph.passes import Report
from qgraph.policy import stage
from qgraph.training.agree import mean_over_processes
from qgraph.training.monitors import Monitors
from qgraph.training.schedule import Schedule
from qgraph.training.signals import sharpness_of
from qgraph.training.table import LiveTable
from qgraph.training.telemetry import Row, Sink, TelemetryFile, rows_of, scalars_of

Say = Callable[[str], None]
FILE = "qgraph-telemetry.jsonl"


class Run:
    """A run of `steps` optimizer steps of one model under its policy.

        run = qgraph.Run(model, "mine.yaml", steps=1000)
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss)

    The model is compiled with `policy` unless it is already. `done` counts the steps that a resumed
    run has behind it; see also `state` and `restore`. What happens is told through `say`, one line
    each. `stopped` says which monitor wants the run to end, if one does.

    With `telemetry` N every quantizer is looked at each N steps: `rows` has the last, `folder` gets a
    JSONL file of all of them, `log` gets them as scalars, and `table` shows them in the terminal.

    Raises: PolicyError, before the first step, if the schedule or a monitor does not fit the run;
        ModelError as `qgraph.compile`; ArtifactError if the file cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: PolicyLike | None = None,
        *,
        steps: int,
        done: int = 0,
        telemetry: int = 0,
        folder: str | os.PathLike[str] | None = None,
        table: bool = False,
        log: Sink | None = None,
        say: Say | None = None,
    ) -> None:
        for name, number, least in (("steps", steps, 1), ("telemetry", telemetry, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ModelError(
                    f"{name} is {number!r}, not a number of steps", f"give {name}=1000"
                )
        if policy is not None:
            compile(model, policy)
        self.model, self.total, self.done = model, steps, done
        self.policy = compiled_by_us(model).policy
        self.schedule = Schedule(self.policy, steps)
        self.monitors = Monitors(self.policy.monitors, model)
        self.stopped = ""
        self.rows: list[Row] = []
        self._every, self._log, self._say = telemetry, log, say or _print
        self._recorder: tuple[int, Any] | None = None
        if telemetry or self.monitors.watches_products:
            self._recorder = make_recorder()
        self._stages: dict[tuple[int, ...], tuple[Report, Callable[..., Any]]] = {}
        self._active: tuple[int, ...] | None = None
        self._call: Callable[..., Any] = model._call_impl
        self._losses: list[Tensor] = []
        self._summed = self._fresh = False
        self._sharpness: list[float] = []
        facts = {
            "policy": self.policy.name,
            "fingerprint": self.policy.fingerprint(),
            "steps": steps,
            "every": telemetry,
        }
        self._file = (
            TelemetryFile(Path(folder) / FILE, facts, done) if folder and telemetry else None
        )
        self._table = LiveTable() if table and telemetry else None
        self._enter()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Take it that an optimizer step is done. `loss` is that of the step; else the model's own.

        Raises: PolicyError if a switch or a monitor watches what the step did not give.
        """
        self.done += 1
        if self._fresh:
            self._tell_stage()
        numbers = self._numbers(loss)
        if self._recorder is not None and self._recorder[1].due:
            self._collect(numbers)
        if "wgrad_error" not in numbers and not self._quantizes_wgrad():
            numbers["wgrad_error"] = 0.0  # high precision, as a switch set it
        where = str(numbers.pop("where", "") or "")
        for trip in self.monitors.check(self.done, numbers, where):
            self.say(f"step {self.done}: {trip.text}")
            self._write([{"step": self.done, "event": trip.text}])
            if trip.monitor.action == "stop":
                self.stopped = self.stopped or trip.text
            self.schedule.see_trip(self.done, trip.monitor.name)
        if (switch := self.schedule.needs_loss) is not None:
            value = numbers["loss"]
            if value is None:
                raise PolicyError(
                    switch.place,
                    f"{switch.key}.on",
                    f"it watches the loss, and step {self.done} gave none",
                    "call run.step(loss), or pass labels to the model",
                )
            self.schedule.see_loss(self.done, value)
        self._losses.clear()
        self._sharpness.clear()
        self._enter()

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._say(text)

    def close(self) -> None:
        """Close the file and leave the table; the model stays as the last stage compiled it."""
        if self._table is not None:
            self._table.close()
        if self._file is not None:
            self._file.close()
        self._file = self._table = None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know beside the model's and the optimizer's state: plain data."""
        return {
            "done": self.done,
            "fingerprint": self.policy.fingerprint(),
            "schedule": self.schedule.state(),
            "monitors": self.monitors.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the run that gave `state` was."""
        self.done = int(state["done"])
        self.schedule.restore(state["schedule"])
        self.monitors.restore(state["monitors"])
        self._enter()

    def _enter(self) -> None:
        """Make ready for the next step: its stage, and what is looked at in it."""
        if self._recorder is not None:
            telemetry = self._every and (self.done + 1) % self._every == 0
            wgrad = self.monitors.due(self.done + 1, "wgrad_error")
            self._recorder[1].due = bool(telemetry or wgrad)
        active = self.schedule.active(self.done)
        if active == self._active or self.done >= self.total:
            return
        before, self._active = self._active, active
        new = active not in self._stages
        if new:
            observe = self._recorder and (self._recorder[0], self.monitors.watches_products)
            report = enter_stage(self.model, stage(self.policy, active), observe)
            call = self.model._compiled_call_impl
            assert call is not None, "the model was just compiled"
            self._stages[active] = (report, call)
        report, self._call = self._stages[active]
        replace_call(self.model, self._watched(), report)
        if before is not None or active:
            text = self._told(set(before or ()), set(active), new)
            self.say(text)
            self._write([{"step": self.done, "event": text}])
            self._fresh = new

    def _told(self, before: set[int], after: set[int], new: bool) -> str:
        by_number = {switch.number: switch for switch in self.policy.schedule}
        words = [
            f"{by_number[number].key} ({by_number[number].text}) is {state}"
            for numbers, state in ((after - before, "on"), (before - after, "off"))
            for number in sorted(numbers)
        ]
        how = "the next step compiles anew" if new else "back to code that was compiled before"
        when = f"policy {self.policy.name}, after {self.done} of {self.total} steps"
        return f"{when}: {'; '.join(words)}; {how}"

    def _quantizes_wgrad(self) -> bool:
        report = self._stages[self._active or ()][0]
        return any(entry.role == "wgrad" for entry in report.quantized)

    def _tell_stage(self) -> None:
        """Say what is quantized, after the first step of a new stage."""
        report, self._fresh = self._stages[self._active or ()][0], False
        counts = {
            role: sum(entry.role == role for entry in report.quantized)
            for role in ("fprop", "dgrad", "wgrad")
        }
        self.say(
            f"step {self.done}: {len(report.quantized)} of {len(report.entries)} products quantized now: "
            + ", ".join(f"{count} {role}" for role, count in counts.items())
        )

    def _watched(self) -> Callable[..., Any]:
        """Return the stage's call, noting what training calls give."""

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._call(*args, **kwargs)
            if torch.is_grad_enabled() and self.model.training:
                loss = result.get("loss") if isinstance(result, dict) else None
                if isinstance(loss, Tensor):
                    self._losses.append(loss.detach())
                    self._summed = kwargs.get("num_items_in_batch") is not None
                if self.monitors.due(self.done + 1, "logit_sharpness"):
                    value = sharpness_of(self.model, result, kwargs.get("labels"))
                    if value is not None:
                        self._sharpness.append(value)
            return result

        return call

    def _numbers(self, loss: Tensor | float | None) -> dict[str, Any]:
        """Return the numbers monitors and switches look at; the same in every process."""
        numbers: dict[str, Any] = {"loss": None}
        if self.monitors.watches_loss or self.schedule.needs_loss is not None:
            numbers["loss"] = mean_over_processes(self._loss(loss), self.model)
        if self.monitors.due(self.done, "logit_sharpness"):
            count = len(self._sharpness)
            value = sum(self._sharpness) / count if count else None
            numbers["logit_sharpness"] = mean_over_processes(value, self.model)
        return numbers

    def _loss(self, given: Tensor | float | None) -> float | None:
        """Return the step's loss: given, or of its micro-batches as the model gave them."""
        if given is not None:
            return float(given.detach() if isinstance(given, Tensor) else given)
        if not self._losses:
            return None
        # Trainer divides by the tokens of the whole step where the model can: then they add up.
        total = float(torch.stack([loss.float() for loss in self._losses]).sum())
        return total if self._summed else total / len(self._losses)

    def _collect(self, numbers: dict[str, Any]) -> None:
        """Take what the recorder noted in the step, into `numbers` and to where telemetry goes."""
        assert self._recorder is not None, "something was recorded"
        recorder = self._recorder[1]
        errors = {
            place: (error / whole) ** 0.5
            for place, (error, whole) in recorder.products.items()
            if whole > 0
        }
        if errors and self.monitors.due(self.done, "wgrad_error"):
            worst = max(errors, key=lambda place: errors[place])
            numbers["wgrad_error"] = mean_over_processes(errors[worst], self.model)
            numbers["where"] = worst.split("|")[0]
        if self._every and self.done % self._every == 0:
            self.rows = rows_of(self.done, recorder.records)
            for row in self.rows:
                if row["product"] == "wgrad" and f"{row['module']}|wgrad" in errors:
                    row["wgrad_error"] = errors[f"{row['module']}|wgrad"]
            self._write(self.rows)
            if self._log is not None:
                self._log(scalars_of(self.rows))
            if self._table is not None:
                self._table.show(self.done, self.total, self.rows)
        recorder.clear()

    def _write(self, rows: list[Row]) -> None:
        if self._file is not None:
            self._file.write(rows)


def _print(text: str) -> None:
    sys.stderr.write(f"qgraph: {text}\n")
