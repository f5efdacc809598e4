"""Converting a model: its joint graph before and after a policy, a report, and a trainable module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from qgraph.doors.aot import capture, saved_tensors
from qgraph.doors.facts import Outline
from qgraph.doors.jit import PolicyLike, as_policy, compile, device_of
from qgraph.errors import ModelError, PolicyError
from qgraph.ops import describe_lowering, state
from qgraph.passes import (
    Report,
    find_sites,
    graph_text,
    names_of,
    run_passes,
)
from qgraph.policy import Policy, check_blocks, check_globs, check_named_parts

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What converting a model found: the report, and the joint graph as text before and after."""

    policy: Policy
    report: Report
    graph_before: str
    graph_after: str
    inputs: dict[str, list[int]]  # shapes of the example inputs


def convert(model: Model, policy: PolicyLike, example_inputs: Mapping[str, Any]) -> Model:
    """Rewrite `model`'s training step as `policy` says; return the model, ready to train.

    The step is captured at the shapes of `example_inputs` (keyword inputs, with labels if there is
    to be a loss) and checked; then the model is compiled in place, so it keeps its class, signature
    and parameters, and takes other shapes too. `conversion(model)` gives the report and the graphs.

    Raises: PolicyError if the policy is wrong, its rules quantize none of the model's products
        (products that qgraph cannot quantize are in the report, with the reason), or fewer than
        its `coverage` demands;
        ModelError if the model cannot be captured as one graph.
    """
    chosen = as_policy(policy)
    found = analyze(model, chosen, example_inputs)
    compile(model, chosen)
    state.CONVERTED[model] = found
    return model


def conversion(model: nn.Module) -> Conversion:
    """Return what `convert` found.

    Raises: ModelError if the model was not converted.
    """
    found: Conversion | None = state.CONVERTED.get(model)
    if found is None:
        raise ModelError(
            f"this {type(model).__name__} was not converted", "call qgraph.convert first"
        )
    return found


def analyze(model: nn.Module, policy: Policy, example_inputs: Mapping[str, Any]) -> Conversion:
    """Capture and rewrite `model`'s training step without changing the model.

    Raises: as `convert`.
    """
    if not isinstance(example_inputs, Mapping) or not example_inputs:
        raise ModelError(
            "example_inputs must be the model's keyword inputs, at least one",
            "{'input_ids': ids, 'labels': ids}",
        )
    layers = Outline.of(model).layers
    check_named_parts(policy, layers)
    check_globs(policy, [layer.module for layer in layers])
    captured = capture(model, example_inputs, policy)
    check_blocks(policy, find_sites(captured.graph, captured.facts))
    before = graph_text(captured.graph, captured.facts.modules)
    report = Report(policy=policy, lowering=describe_lowering(device_of(model)))
    report.replaced += captured.replaced
    report.add(run_passes(captured.step(), (*names_of("joint"), "verify")))
    if policy.stash:
        report.saved[None] = saved_tensors(captured, policy)
    # A model of nothing but products qgraph cannot quantize is reported; this is about the rules.
    found = {entry.status for entry in report.entries}
    if (
        policy.quantizes
        and "quantized" not in found
        and (found <= {"kept"} or "unmatched" in found)
    ):
        reasons = {entry.reason for entry in report.entries} or {"the model has no matrix products"}
        raise PolicyError(
            policy.path or policy.name,
            "rules",
            f"none of the model's {len(report.entries)} products is quantized: {'; '.join(sorted(reasons))}",
            "change what the rules match, or use the recipe 'high' to quantize nothing",
        )
    report.check()
    return Conversion(
        policy=policy,
        report=report,
        graph_before=before,
        graph_after=graph_text(captured.graph, captured.facts.modules),
        inputs={k: list(v.shape) for k, v in example_inputs.items() if isinstance(v, Tensor)},
    )
