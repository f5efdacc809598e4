"""One training step of a small model under each of several recipes, with every operand looked at."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter

import qgraph
from qgraph.compat import descriptions, meta
from qgraph.doors.aot import Capture, capture
from qgraph.errors import ModelError
from qgraph.passes import Report, Watch, names_of, run_passes
from qgraph.policy import load_policy
from tests.doors.zoo import Entry, make_entry

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
    joint = captured.graph
    for recipe in recipes:
        captured.joint_module.graph = copy.deepcopy(joint)  # the passes edit it in place
        report = Report(policy=load_policy(recipe))
        rewriting = replace(captured.step(report.policy), watch=Watch(check=next(_NUMBERS)))
        report.add(run_passes(rewriting, names_of("joint", "lower", "watch")))
        yield recipe, _run_joint(captured, inputs, report)


def _run_joint(captured: Capture, inputs: dict[str, Any], report: Report) -> Step:
    """Run forward and backward as the one graph they are: no cut between them is needed here."""
    values = [*captured.module.parameters(), *captured.module.buffers(), *inputs.values()]
    for node in captured.graph.find_nodes(op="placeholder")[len(values) :]:
        like = meta.value(node)
        is_loss = descriptions.tangent_number(meta.description(node)) == 0
        values.append(torch.full(like.shape, float(is_loss), dtype=like.dtype))
    torch.manual_seed(0)
    with torch.no_grad():
        found = Interpreter(captured.joint_module).run(*values, enable_io_processing=False)
    (output,) = captured.graph.find_nodes(op="output")
    results = {
        descriptions.gradient_name(kind): value
        for kind, value in zip(meta.description(output), found, strict=True)
    }
    names = zip(captured.module.named_parameters(), captured.parameters, strict=True)
    gradients = {own: results.get(name) for (name, _), own in names}
    kept = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    return Step(loss=found[0], gradients=kept, report=report)


def _run(model: nn.Module, call: Any, inputs: dict[str, Any], report: Report | None) -> Step:
    model.zero_grad()
    torch.manual_seed(0)
    loss = call(**inputs).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Step(loss=loss.detach(), gradients=gradients, report=report)
