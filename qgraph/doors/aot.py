"""The AOT front door: one whole joint graph, captured without running it, for artifacts and reading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from qgraph.compat import aot, descriptions, dynamo, meta
from qgraph.doors.attention import take_attention_apart
from qgraph.doors.decompositions import decompositions
from qgraph.doors.facts import Outline, graph_facts
from qgraph.doors.partition import Partitioner
from qgraph.errors import ModelError
from qgraph.passes import GraphFacts, Report, SavedTensor
from qgraph.policy import Policy

# What Dynamo raises where it cannot follow a model; it asserts where it meets an unknown output.
_FAILURES = (dynamo.NotFollowed, AssertionError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A model's forward and backward as one graph, for one set of input shapes.

    `parameters` are the model's own names, in the order of the graph's parameter inputs.
    """

    module: GraphModule
    joint: aot.Joint
    facts: GraphFacts
    parameters: tuple[str, ...]

    @property
    def joint_module(self) -> GraphModule:
        """The joint graph as a module."""
        return aot.module_of(self.joint)

    @property
    def graph(self) -> Graph:
        """The joint graph; passes edit it in place."""
        return self.joint_module.graph


def capture(model: nn.Module, inputs: Mapping[str, Any], policy: Policy | None = None) -> Capture:
    """Capture `model(**inputs)` and its backward as one joint graph.

    Fused attention is taken apart where `policy` quantizes its products.

    Compiled code that Dynamo holds for other models is dropped, and compiled again when next called.

    Raises: ModelError if the model cannot be captured whole, with the reason Dynamo gives.
    """
    with _without_cache(model):
        module = _capture_module(model, dict(inputs))
        outline = Outline.of(model)
        if policy is not None:
            take_attention_apart(module, policy, outline)
        joint = aot.export_joint(module, inputs, decompositions())
    facts = graph_facts(
        aot.module_of(joint).graph,
        lambda node: descriptions.is_parameter(meta.description(node)),
        outline,
    )
    return Capture(module=module, joint=joint, facts=facts, parameters=_own_names(model, module))


def saved_tensors(captured: Capture, policy: Policy) -> list[SavedTensor]:
    """Return what a (rewritten) capture saves for its backward, and how the policy's stash stores it.

    The capture is not changed.
    """
    report = Report(policy=policy)
    graph = copy.deepcopy(captured.graph)
    module = GraphModule(captured.joint_module, graph)
    (output,) = graph.find_nodes(op="output")
    results = descriptions.count_results(meta.description(output))
    _partitioner(captured, policy, report)(module, (), num_fwd_outputs=results)
    return report.saved[None]


def _partitioner(captured: Capture, policy: Policy, report: Report) -> Partitioner:
    return Partitioner(
        policy=policy, report=report, facts=lambda _: captured.facts, frame=None, key=""
    )


def compile_capture(captured: Capture, policy: Policy | None = None) -> Callable[..., Any]:
    """Compile a (rewritten) capture with Inductor; the result takes the captured keyword inputs.

    It reads the model's own parameters, so that a backward leaves gradients in them. What it saves
    for the backward is stored as the policy's stash says.
    """
    cut: aot.Cut = aot.cut_in_two
    if policy is not None:
        cut = _partitioner(captured, policy, Report(policy=policy))
    compiled = aot.compile_joint(captured.joint, cut)
    state = [
        *(p for _, p in captured.module.named_parameters()),
        *(b for _, b in captured.module.named_buffers()),
    ]

    def run(**inputs: Any) -> Any:
        return compiled(*state, **inputs)

    return run


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Turn key-value caches off: state for generation, which would only add outputs."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    cached = [config for config in configs.values() if getattr(config, "use_cache", False)]
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for config in cached:
            config.use_cache = True


def _capture_module(model: nn.Module, inputs: dict[str, Any]) -> GraphModule:
    try:
        return dynamo.capture_module(model, inputs)
    except _FAILURES as first:
        # Some models set hooks up in their first call, which breaks the graph once.
        try:
            with torch.no_grad():
                model(**inputs)
            return dynamo.capture_module(model, inputs)
        except _FAILURES:
            reason = str(first).strip().split("\n")[0]
            raise ModelError(
                f"{type(model).__name__} cannot be captured as one graph: {reason}",
                "use qgraph.compile(model, policy): it takes models in pieces",
            ) from first


def _own_names(model: nn.Module, module: GraphModule) -> tuple[str, ...]:
    """Return the model's name of each parameter of the captured module, matched by identity."""
    names = {id(p): name for name, p in model.named_parameters()}
    return tuple(names.get(id(p), dynamo.own_name(name)) for name, p in module.named_parameters())
