"""The torch.compile backend: it rewrites each joint graph before Inductor sees it."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from qgraph.compat import aot, dynamo, inductor
from qgraph.doors.audit import Audit
from qgraph.doors.cache_key import cache_key
from qgraph.doors.decompositions import decompositions
from qgraph.doors.facts import Outline, graph_facts, input_index, rewrite_model
from qgraph.doors.parallel import Meshes, name_splits
from qgraph.doors.partition import Partitioner
from qgraph.errors import QGraphWarning
from qgraph.ops import state
from qgraph.passes import (
    GraphFacts,
    Processes,
    Report,
    Step,
    Target,
    Watch,
    names_of,
    run_passes,
    whole_attention,
)
from qgraph.policy import Policy

# Of a graph, its inputs, and torch.compile's mode or options.
Backend = Callable[..., Callable[..., Any]]


def make_backend(
    policy: Policy,
    report: Report,
    known: Outline | None = None,
    *,
    target: Target = "emulate",
    codegen: bool = True,
    audit: Audit | None = None,
    limit: int | None = None,
    part: str = "",
) -> Backend:
    """Return a torch.compile backend for one policy; what it does is added to `report`.

    `audit` counts what runs of it; `limit` is how often torch compiles one piece, None for its own;
    `part` is the path of the module that is compiled, of a whole model "".

    Each policy has a backend object of its own because Dynamo guards on the object: a hook in
    Inductor's global configuration is not guarded, and a second policy would get the first's code.
    """
    times: Counter[object] = Counter()
    meshes = Meshes()

    def backend(
        module: GraphModule,
        inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Callable[..., Any]:
        dynamo.guard_modules(module)
        outline = known.now() if known else None
        report.replaced += rewrite_model(module, policy, outline)
        frame = dynamo.frame()
        piece = (frame, frozenset(id(v) for v in inputs if isinstance(v, nn.Parameter)))
        times[piece] += 1
        if times[piece] == (limit or dynamo.recompile_limit()):
            warnings.warn(
                f"one part of the model was compiled {times[piece]} times, which is Dynamo's limit: if "
                "its inputs change again it runs without quantization; pass dynamic=True to "
                f"qgraph.compile, or raise {dynamo.limit_setting()}",
                QGraphWarning,
                stacklevel=2,
            )
        if outline is not None:
            report.not_captured -= outline.seen(inputs)
        rewriting = Rewrite(
            policy=policy,
            report=report,
            parameters=_parameters(module, inputs),
            tables=frozenset(
                i for i, v in enumerate(inputs) if outline and id(v) in outline.tables
            ),
            buffers=outline.buffers(inputs) if outline is not None else frozenset(),
            outline=outline,
            part=part or _compiled_module(module, inputs, outline),
            frame=frame,
            target=target,
            processes=meshes.see(inputs, outline.owner() if outline else None),
            check=next(state.GRAPH_NUMBERS)
            if os.environ.get("QGRAPH_VERIFY", "0") not in ("", "0")
            else 0,
        )
        hide = audit.hide if audit else _as_it_is
        if codegen:
            compiled = inductor.compile_graph(
                module,
                inputs,
                rewrite=rewriting,
                cut=rewriting.partitioner() if policy.stash else None,
                decompositions=decompositions(),
                backward=hide,
                settings=inductor.settings_of(mode, options),
            )
        else:
            compiled = _run_op_by_op(rewriting, module, inputs, hide)
        return audit.count(compiled) if audit else compiled

    return backend


def _parameters(module: GraphModule, inputs: Sequence[Any]) -> frozenset[int]:
    """Return which inputs are a model's parameters, by position."""
    places = module.graph.find_nodes(op="placeholder")
    return frozenset(
        i
        for i, (node, value) in enumerate(zip(places, inputs, strict=True))
        if isinstance(value, nn.Parameter) or dynamo.holds_parameter(node)
    )


def _compiled_module(module: GraphModule, inputs: Sequence[Any], outline: Outline | None) -> str:
    places = module.graph.find_nodes(op="placeholder")
    return outline.module_of(map(dynamo.path_from_self, places), inputs) if outline else ""


def _as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    return call


def _run_op_by_op(
    rewriting: Rewrite,
    module: GraphModule,
    inputs: Sequence[Any],
    hide: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    def cut(
        joint: GraphModule, joint_inputs: Any, **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        rewriting(joint.graph)
        joint.recompile()
        return rewriting.partitioner()(joint, joint_inputs, **kwargs)

    def infer(alone: GraphModule, alone_inputs: Any) -> Callable[..., Any]:
        rewriting(alone.graph)
        alone.recompile()
        return aot.as_it_is(alone, alone_inputs)

    def hidden(half: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return aot.boxed(hide(half.forward))

    return aot.op_by_op(
        module,
        inputs,
        cut=cut,
        infer=infer,
        decompositions=decompositions(),
        run_backward=hidden,
    )


@dataclass(frozen=True, kw_only=True)
class Rewrite(inductor.CustomGraphPass):
    """Inductor's hook: rewrites one joint graph."""

    policy: Policy
    report: Report
    parameters: frozenset[int]  # positions among the graph's inputs
    tables: frozenset[int]  # those that hold embeddings
    buffers: frozenset[int]
    outline: Outline | None
    part: str  # the path of the module that is compiled
    frame: int | None  # Dynamo's number of the code that was captured
    target: Target
    processes: Processes | None  # with splits by number of the input
    check: int  # with QGRAPH_VERIFY=1 the graph's own number, else 0

    def facts(self, graph: Graph) -> GraphFacts:
        """Return what the passes must know about a joint graph."""
        facts = graph_facts(
            graph,
            lambda node: input_index(node) in self.parameters,
            self.outline,
            lambda node: input_index(node) in self.tables,
            lambda node: input_index(node) in self.buffers,
        )
        return replace(facts, root=self.part, processes=name_splits(self.processes, graph))

    def __call__(self, graph: Graph) -> None:
        """Rewrite a joint graph in place, and report it."""
        start = time.perf_counter()
        facts = self.facts(graph)
        watch = Watch(check=self.check, recorder=self.outline.observe if self.outline else None)
        step = Step(graph=graph, policy=self.policy, facts=facts, target=self.target, watch=watch)
        run_passes(step, names_of("joint", "lower", "watch"))
        self.report.add(step, self.frame)
        self.report.pass_seconds += time.perf_counter() - start
        if whole := [name or "the model" for name in whole_attention(step.plans)]:
            warnings.warn(
                f"policy {self.policy.name}: the fused attention of {', '.join(whole)} is inside a call that "
                "cannot be taken apart, so the rules on qk and pv do not reach it; call "
                "torch.nn.functional.scaled_dot_product_attention where torch.compile sees it",
                QGraphWarning,
                stacklevel=2,
            )
        # Parts that the policy keeps are no reason to warn; products no rule speaks about are.
        left = {plan.reason for plan in step.plans if plan.status in ("unmatched", "unsupported")}
        if left and self.policy.quantizes and not self.report.quantized:
            warnings.warn(
                f"policy {self.policy.name}: nothing is quantized so far: {'; '.join(sorted(left))}",
                QGraphWarning,
                stacklevel=2,
            )

    def partitioner(self) -> Partitioner:
        """Return what cuts the graph after this pass."""
        return Partitioner(
            policy=self.policy,
            report=self.report,
            facts=self.facts,
            frame=self.frame,
            key=self.uuid(),
        )

    def uuid(self) -> str:
        """Return the key of code built with this policy for this model."""
        key = f"{cache_key(self.policy)} {self.target}"
        if self.check:  # never another process's code: what is checked once is remembered here
            key += f" checked {os.getpid()} {self.check}"
        if self.outline is not None and self.outline.observe is not None:
            key += f" observed {self.outline.observe}"
        if self.outline is None or self.outline.history is None:
            return key
        # Code that reads histories is of no use to another model, whose rows lie elsewhere.
        names = sorted(set(self.outline.modules.values()))
        return f"{key} {self.outline.history} {names}"
