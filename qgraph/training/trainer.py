"""qgraph in HF Trainer: one callback that compiles, switches, watches and writes down."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.trainer_callback import ExportableState

from qgraph.doors import PolicyLike, as_policy, compile, compiled_by_us
from qgraph.errors import ModelError, PolicyError
from qgraph.ops import history_of
from qgraph.passes import Target
from qgraph.policy import PLATEAU
from qgraph.training.callback import CoverageCallback, unwrap
from qgraph.training.reporting import Reporters
from qgraph.training.run import Run

NAME = "QGraphCallback"


class QGraphCallback(CoverageCallback, ExportableState):
    """Train with a policy: `Trainer(..., callbacks=[qgraph.QGraphCallback("nvfp4")])`.

    The Trainer's model is compiled in place, under `target` and with `options` as `qgraph.compile`
    takes them; without a `policy` it must be compiled already. The policy's schedule and monitors
    run; switches and trips are printed and logged to `trainer_state.json` (`qgraph/event`). The
    coverage table is printed after the first step. With `telemetry` N every quantizer is looked at
    each N steps: see `qgraph.Run`. Rows go to `qgraph-telemetry.jsonl` in the output directory, to
    what `report_to` names, and with `table` to the terminal.

    A checkpoint has what tripped, so that a resumed run goes on as it was. `torch_compile=True` is
    left to qgraph: accelerate's own compilation would go around it.

    Raises: PolicyError or ModelError as `qgraph.Run`, before the first step.
    """

    def __init__(
        self,
        policy: PolicyLike | None = None,
        *,
        telemetry: int = 0,
        table: bool = False,
        target: Target = "emulate",
        width: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(width)
        self._policy = None if policy is None else as_policy(policy)
        self._telemetry, self._table = telemetry, table
        self._options: dict[str, Any] = {"target": target, **options}
        self._run: Run | None = None
        self._model: nn.Module | None = None
        self._reporters: Reporters | None = None
        self._saw_init = False

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compile the model, before accelerate can."""
        self._saw_init = True
        plugin = AcceleratorState().dynamo_plugin
        if plugin.backend != DynamoBackend.NO:
            plugin.backend = DynamoBackend.NO
            sys.stderr.write(
                "qgraph: torch_compile=True: qgraph compiles the model; torch_compile's backend and "
                "mode are not used\n"
            )
        if kwargs.get("model") is not None:
            self._compile(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a run: every fault of the policy, the schedule and the monitors is told here."""
        model = unwrap(kwargs["model"])
        if not self._saw_init and args.torch_compile:
            raise ModelError(
                "torch_compile=True compiled the model before qgraph could",
                "give QGraphCallback to Trainer(callbacks=[...]), not to add_callback",
            )
        self._compile(model)
        self._check_signals(args, model)
        self._model = model
        self.close()
        main = state.is_world_process_zero

        def say(text: str) -> None:
            if main:
                sys.stderr.write(f"qgraph: {text}\n")
            state.log_history.append({"step": state.global_step, "qgraph/event": text})

        self._reporters = Reporters(args, state, control) if self._telemetry and main else None
        self._run = Run(
            model,
            steps=state.max_steps,
            done=state.global_step,
            telemetry=self._telemetry,
            folder=args.output_dir if main else None,
            table=self._table and main,
            log=self._log,
            say=say,
        )
        saved = state.stateful_callbacks.get(NAME)
        if (
            state.global_step
            and isinstance(saved, dict)
            and saved.get("attributes", {}).get("saved")
        ):
            self._restore(saved["attributes"]["saved"], state.global_step)
            history, stored = history_of(model), saved["attributes"].get("history")
            if history is not None and stored is not None:
                history.copy_(torch.tensor(stored))
        state.stateful_callbacks.setdefault(NAME, self.state())  # a checkpoint of a run without it
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the step; stop where a monitor says so."""
        super().on_step_end(args, state, control, **kwargs)
        assert self._run is not None, "a run has begun"
        self._run.step()
        if self._run.stopped:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close files and the table."""
        self.close()

    @property
    def run(self) -> Run:
        """The run that goes on, or the last.

        Raises: ModelError before there is one.
        """
        if self._run is None:
            raise ModelError("no run has begun", "call Trainer.train() first")
        return self._run

    def close(self) -> None:
        """Close what is open of the last run."""
        if self._run is not None:
            self._run.close()
        if self._reporters is not None:
            self._reporters.close()
        self._reporters = None

    def state(self) -> dict[str, Any]:
        """Return what Trainer keeps in a checkpoint."""
        saved = self._run.state() if self._run is not None else None
        attributes: dict[str, Any] = {"saved": saved}
        history = None if self._model is None else history_of(self._model)
        if history is not None and hasattr(self._model, "peft_config"):
            # A checkpoint of adapters alone leaves the buffers of the model out.
            attributes["history"] = history.float().tolist()
        return {"args": {}, "attributes": attributes}

    def _log(self, scalars: dict[str, float]) -> None:
        if self._reporters is not None and self._run is not None:
            self._reporters.log(self._run.done, scalars)

    def _compile(self, model: nn.Module) -> None:
        if self._policy is None:
            compiled_by_us(model)
            return
        try:
            known = compiled_by_us(model).policy
        except ModelError:
            compile(model, self._policy, **self._options)
            return
        if known.fingerprint() != self._policy.fingerprint():
            raise ModelError(
                f"the model is compiled under {known.name}, and the callback says {self._policy.name}",
                "leave qgraph.compile out, or give the callback no policy",
            )

    def _restore(self, saved: dict[str, Any], done: int) -> None:
        if saved["fingerprint"] != self.run.policy.fingerprint():
            return  # another policy's trips say nothing about this one
        self.run.restore({**saved, "done": done})

    def _check_signals(self, args: Any, model: nn.Module) -> None:
        """See that the loss gets to who watches it."""
        policy = compiled_by_us(model).policy
        seeing = ("loss_spike", "logit_sharpness")
        watchers = [(m.place, f"{m.key}.watch") for m in policy.monitors if m.watch in seeing]
        watchers += [(s.place, f"{s.key}.on") for s in policy.schedule if s.on == PLATEAU]
        if args.label_smoothing_factor and watchers:
            raise PolicyError(
                *watchers[0],
                "with label_smoothing_factor the model sees no labels and gives no loss",
                "set label_smoothing_factor=0, or remove it",
            )
