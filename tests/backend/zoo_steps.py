"""One training step of a small model under each of several recipes, with every operand looked at."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import qgraph
from qgraph.doors.aot import capture, compile_capture
from qgraph.errors import ModelError
from qgraph.passes import Report, Watch, names_of, run_passes
from qgraph.policy import load_policy
from tests.backend.zoo import Entry, make_entry

_NUMBERS = itertools.count(-1, -1)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step gave: the loss, the gradients by name, and what was quantized (none: nothing)."""

    loss: Tensor
    gradients: dict[str, Tensor]
    report: Report | None = None


def plain_step(entry: Entry) -> Step:
    """Return the step as it is without qgraph."""
    model, inputs = make_entry(entry)
    return _run(model, model, inputs, None)


def take_steps(entry: Entry, recipes: Iterable[str]) -> Iterator[tuple[str, Step]]:
    """Return the step under each recipe, run op by op.

    The model is captured once and rewritten for each recipe; one with graph breaks is compiled.
    Needs QGRAPH_VERIFY=1 for the latter.
    """
    model, inputs = make_entry(entry)
    try:
        captured = capture(model, inputs)
    except ModelError:
        for recipe in recipes:
            torch._dynamo.reset()
            model, inputs = make_entry(entry)
            qgraph.compile(model, recipe, codegen=False)
            yield recipe, _run(model, model, inputs, qgraph.coverage(model))
        return
    module, metadata = captured.joint_module, captured.joint._aot_state.fw_metadata
    for recipe in recipes:
        # Compiling uses both up.
        captured.joint.graph_module = copy.deepcopy(module)
        captured.joint._aot_state.fw_metadata = copy.copy(metadata)
        report = Report(policy=load_policy(recipe))
        rewriting = replace(captured.step(report.policy), watch=Watch(check=next(_NUMBERS)))
        report.add(run_passes(rewriting, names_of("joint", "lower", "watch")))
        yield recipe, _run(model, compile_capture(captured, codegen=False), inputs, report)


def _run(model: nn.Module, call: Any, inputs: dict[str, Any], report: Report | None) -> Step:
    model.zero_grad()
    torch.manual_seed(0)
    loss = call(**inputs).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Step(loss=loss.detach(), gradients=gradients, report=report)
