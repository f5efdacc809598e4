"""One training run: what counts its steps, switches its policy, watches it and writes it down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.backend.jit import PolicyLike, compile, compiled_by_us, enter_stage, replace_call
from qgraph.errors import ModelError, PolicyError
from qgraph.passes import Report
from qgraph.policy import stage
from qgraph.training.schedule import Schedule

Say = Callable[[str], None]


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
    run has behind it. What happens is told through `say`, one line each.

    Raises: PolicyError, before the first step, if the schedule or a monitor does not fit the run;
        ModelError as `qgraph.compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: PolicyLike | None = None,
        *,
        steps: int,
        done: int = 0,
        say: Say | None = None,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ModelError(f"a run has at least one step, not {steps!r}", "give steps=1000")
        if policy is not None:
            compile(model, policy)
        self.model, self.total, self.done = model, steps, done
        self.policy = compiled_by_us(model).policy
        self.schedule = Schedule(self.policy, steps)
        self._say = say or _print
        self._stages: dict[tuple[int, ...], tuple[Report, Callable[..., Any]]] = {}
        self._active: tuple[int, ...] | None = None
        self._call: Callable[..., Any] = model._call_impl
        self._losses: list[Tensor] = []
        self._summed = False
        self._enter()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Take it that an optimizer step is done. `loss` is that of the step; else the model's own.

        Raises: PolicyError if a switch or a monitor watches the loss and there was none.
        """
        self.done += 1
        value = self._loss(loss)
        if self.schedule.needs_loss is not None:
            self.schedule.see_loss(self.done, self._needed(value))
        self._losses.clear()
        self._enter()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know beside the model's and the optimizer's state: plain data."""
        return {"done": self.done, "schedule": self.schedule.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the run that gave `state` was."""
        self.done = int(state["done"])
        self.schedule.restore(state["schedule"])
        self._enter()

    def _enter(self) -> None:
        """Make the stage of the next step the one that runs; say so where it is another."""
        active = self.schedule.active(self.done)
        if active == self._active or self.done >= self.total:
            return
        before, self._active = self._active, active
        new = active not in self._stages
        if new:
            report = enter_stage(self.model, stage(self.policy, active))
            call = self.model._compiled_call_impl
            assert call is not None, "the model was just compiled"
            self._stages[active] = (report, call)
        report, self._call = self._stages[active]
        replace_call(self.model, self._watched(), report)
        if before is not None or active:
            self._say(self._told(set(before or ()), set(active), new))

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

    def _watched(self) -> Callable[..., Any]:
        """Return the stage's call, noting the loss of training calls."""

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._call(*args, **kwargs)
            if torch.is_grad_enabled() and self.model.training:
                loss = result.get("loss") if isinstance(result, dict) else None
                if isinstance(loss, Tensor):
                    self._losses.append(loss.detach())
                    self._summed = kwargs.get("num_items_in_batch") is not None
            return result

        return call

    def _loss(self, given: Tensor | float | None) -> float | None:
        """Return the step's loss: given, or of its micro-batches as the model gave them."""
        if given is not None:
            return float(given.detach() if isinstance(given, Tensor) else given)
        if not self._losses:
            return None
        # Trainer divides by the tokens of the whole step where the model can: then they add up.
        total = float(torch.stack([loss.float() for loss in self._losses]).sum())
        return total if self._summed else total / len(self._losses)

    def _needed(self, value: float | None) -> float:
        if value is not None:
            return value
        switch = self.schedule.needs_loss
        assert switch is not None, "something watches the loss"
        raise PolicyError(
            switch.place,
            f"{switch.key}.on",
            f"it watches the loss, and step {self.done} gave none",
            "call run.step(loss), or pass labels to the model",
        )


def _print(text: str) -> None:
    sys.stderr.write(f"qgraph: {text}\n")
