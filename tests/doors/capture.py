"""Run a model's rewritten joint graph node by node, without code generation, and record what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter

from qgraph import ops
from qgraph.compat import aot
from qgraph.doors.decompositions import decompositions
from qgraph.doors.facts import Outline, graph_facts, input_index
from qgraph.passes import Plan, Report, Step, graph_text, names_of, run_passes
from qgraph.policy import Policy

QUANTIZERS = (ops.fake_quant, ops.rotate_quant)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one operand of a product reads in the rewritten graph."""

    quantizer: str  # the name of the node that quantizes it, "" for none
    stream: int | None  # the `site` its noise is drawn for, None when it rounds to nearest


@dataclass(frozen=True, kw_only=True)
class Call:
    """One quantization that ran."""

    format: str
    axis: int
    rotation: str  # what rotated values are rounded to, "" where nothing is rotated
    seed: int | None
    stream: int
    before: Tensor
    after: Tensor


@dataclass(kw_only=True)
class Trace:
    """What the graphs of one model are, and what they did when they ran."""

    report: Report
    texts: list[str] = field(default_factory=list)
    plans: list[tuple[Plan, ...]] = field(default_factory=list)
    reads: dict[tuple[str, str, str], Read] = field(default_factory=dict)  # (module, role, operand)
    calls: list[Call] = field(default_factory=list)

    def streams(self) -> dict[tuple[str, str, str], int]:
        """For each stochastic operand, the `site` its noise is drawn for."""
        return {key: read.stream for key, read in self.reads.items() if read.stream is not None}


def interpret(model: nn.Module, policy: Policy, **options: Any) -> Trace:
    """Compile `model` in place as `qgraph.compile` does, with an interpreter in Inductor's place."""
    trace = Trace(report=Report(policy=policy))
    model.compile(backend=_backend(policy, trace, Outline.of(model)), **options)
    return trace


def _backend(policy: Policy, trace: Trace, outline: Outline) -> Callable[..., Any]:
    def backend(module: GraphModule, inputs: Sequence[Any]) -> Any:
        parameters = {i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter)}
        buffers = outline.buffers(inputs)

        def transform(graph: Graph) -> None:
            facts = graph_facts(
                graph,
                lambda node: input_index(node) in parameters,
                outline,
                is_buffer=lambda node: input_index(node) in buffers,
            )
            step = Step(graph=graph, policy=policy, facts=facts)
            plans = run_passes(step, names_of("joint", "lower", "watch")).plans
            trace.report.add(step)
            trace.plans.append(plans)
            trace.texts.append(graph_text(graph))
            for plan in plans:
                for operand in plan.site.operands:
                    key = (plan.site.module, plan.site.role, operand.kind)
                    trace.reads[key] = _read(plan.site.node.args[operand.argument])

        def partition(joint: GraphModule, values: Sequence[Any], **keys: Any) -> Any:
            transform(joint.graph)
            joint.recompile()
            return aot.cut_in_two(joint, values, **keys)

        def run(graph: GraphModule, _: Sequence[Any]) -> Any:
            return aot.boxed(_Recorder(graph, trace).run)

        def run_inference(graph: GraphModule, values: Sequence[Any]) -> Any:
            transform(graph.graph)
            graph.recompile()
            return run(graph, values)

        return aot.op_by_op(
            module,
            inputs,
            cut=partition,
            infer=run_inference,
            decompositions=decompositions(),
            run=run,
        )

    return backend


def _read(source: Any) -> Read:
    while source.target is torch.ops.aten.permute.default:
        source = source.args[0]
    if source.target not in QUANTIZERS:
        return Read(quantizer="", stream=None)
    noise = source.args[3:] if source.target is ops.fake_quant else source.args[5:]
    return Read(quantizer=source.name, stream=noise[1] if noise else None)


class _Recorder(Interpreter):
    def __init__(self, graph: GraphModule, trace: Trace) -> None:
        super().__init__(graph)
        self.trace = trace

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_function(target, args, kwargs)
        if target in QUANTIZERS:
            rotation = args[2] if target is ops.rotate_quant else ""
            text, axis, *noise = args[3:] if rotation else args[1:]
            self.trace.calls.append(
                Call(
                    format=text,
                    axis=axis,
                    rotation=rotation,
                    seed=int(noise[0]) if noise else None,
                    stream=noise[1] if noise else 0,
                    before=args[0].detach().clone(),
                    after=result.detach().clone(),
                )
            )
        return result
