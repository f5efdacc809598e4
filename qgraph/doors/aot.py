"""The AOT front door: one whole joint graph, captured without running it, for artifacts and reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from qgraph.compat import aot, descriptions, dynamo, fake, meta
from qgraph.doors.decompositions import decompositions
from qgraph.doors.facts import Outline, graph_facts, rewrite_model
from qgraph.doors.partition import Partitioner, cut
from qgraph.errors import ModelError
from qgraph.models import Shapes
from qgraph.passes import (
    GraphFacts,
    Report,
    SavedTensor,
    Site,
    Step,
    Target,
    find_sites,
    run_passes,
)
from qgraph.policy import Policy, load_policy


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A model's forward and backward as one graph, for one set of input shapes.

    `parameters` are the model's own names, in the order of the graph's parameter inputs.
    """

    module: GraphModule
    joint: aot.Joint
    facts: GraphFacts
    parameters: tuple[str, ...]
    policy: Policy  # it was captured for: what is quantized is taken apart
    replaced: Counter[str]  # functions, by the rule that replaced them

    def step(self, policy: Policy | None = None, target: Target = "emulate") -> Step:
        """Return what passes rewrite, under `policy` or the one it was captured for."""
        return Step(graph=self.graph, policy=policy or self.policy, facts=self.facts, target=target)

    def products(self) -> tuple[Site, ...]:
        """Return every product of the graph, in graph order; each is a node of its own from now on."""
        run_passes(self.step(), ["split"])
        return find_sites(self.graph, self.facts)

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
    return _capture(model, inputs, policy, lambda: Outline.of(model))


def capture_shapes(
    shapes: Shapes, inputs: Mapping[str, Any], policy: Policy | None = None
) -> Capture:
    """Capture the training step of `shapes.model`; its modules have their paths in the whole model.

    Raises: as `capture`.
    """
    return _capture(shapes.model, inputs, policy, lambda: Outline.of_shapes(shapes))


def _capture(
    model: nn.Module,
    inputs: Mapping[str, Any],
    policy: Policy | None,
    see: Callable[[], Outline],
) -> Capture:
    with _without_cache(model), fake.without_log():
        module = _capture_module(model, dict(inputs))
        outline = see()  # after the first call, which may add to the model
        chosen = load_policy("high") if policy is None else policy
        replaced = rewrite_model(module, chosen, outline)
        joint = _joint(model, module, inputs)
    facts = graph_facts(
        aot.module_of(joint).graph,
        lambda node: descriptions.is_parameter(meta.description(node)),
        outline,
        lambda node: id(_parameter(module, node)) in outline.tables,
        lambda node: descriptions.is_buffer(meta.description(node)),
    )
    return Capture(
        module=module,
        joint=joint,
        facts=facts,
        parameters=_own_names(model, module),
        policy=chosen,
        replaced=replaced,
    )


def saved_tensors(captured: Capture, policy: Policy) -> list[SavedTensor]:
    """Return what a (rewritten) capture saves for its backward, and how the policy's stash stores it.

    The capture is not changed.
    """
    report = Report(policy=policy)
    cut(captured.joint_module, _partitioner(captured, policy, report))
    return report.saved[None]


def _partitioner(captured: Capture, policy: Policy, report: Report) -> Partitioner:
    return Partitioner(
        policy=policy, report=report, facts=lambda _: captured.facts, frame=None, key=""
    )


def compile_capture(
    captured: Capture, policy: Policy | None = None, *, codegen: bool = True
) -> Callable[..., Any]:
    """Compile a (rewritten) capture with Inductor; the result takes the captured keyword inputs.

    It reads the model's own parameters, so that a backward leaves gradients in them. What it saves
    for the backward is stored as the policy's stash says. Without `codegen` it runs op by op.
    """
    partition: aot.Cut = aot.cut_in_two
    if policy is not None:
        partition = _partitioner(captured, policy, Report(policy=policy))
    run_half = {} if codegen else {"compiler": aot.as_it_is}
    compiled = aot.compile_joint(captured.joint, partition, **run_half)
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
    """Return `model(**inputs)` as one graph."""
    try:
        return _followed(model, inputs)
    except ModelError as first:
        # Some models set hooks up in their first call, which breaks the graph once.
        _run_once(model, inputs)
        try:
            return _followed(model, inputs)
        except ModelError:
            raise first from first.__cause__


def _joint(model: nn.Module, module: GraphModule, inputs: Mapping[str, Any]) -> aot.Joint:
    try:
        return aot.export_joint(module, inputs, decompositions())
    except Exception as error:  # what the values of tensors decide, among others
        raise _not_whole(model, error) from error


def _followed(model: nn.Module, inputs: dict[str, Any]) -> GraphModule:
    try:
        return dynamo.capture_module(model, inputs)
    except Exception as error:  # Dynamo's own, its assertions, and what the model raises
        raise _not_whole(model, error) from error


def _not_whole(model: nn.Module, error: Exception) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be captured as one graph: {_reason(error)}",
        "use qgraph.compile(model, policy): it takes models in pieces",
    )


def _run_once(model: nn.Module, inputs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(**inputs)
    except fake.NeedsNumbers:  # a model of shapes alone
        return
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run on {', '.join(inputs)}: {_reason(error)}",
            "give another --batch or --length, or inputs of your own: qgraph.convert(model, policy, inputs)",
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    if isinstance(error, fake.NeedsNumbers):
        return f"the numbers in tensors decide what comes of {text}"
    return text if text and not isinstance(error, LookupError) else f"{type(error).__name__} {text}"


def _parameter(module: GraphModule, node: Node) -> nn.Parameter | None:
    """Return which parameter a placeholder holds."""
    name = descriptions.state_name(meta.description(node))
    return dict(module.named_parameters()).get(name or "")


def _own_names(model: nn.Module, module: GraphModule) -> tuple[str, ...]:
    """Return the model's name of each parameter of the captured module, matched by identity."""
    names = {id(p): name for name, p in model.named_parameters()}
    return tuple(names.get(id(p), dynamo.own_name(name)) for name, p in module.named_parameters())
