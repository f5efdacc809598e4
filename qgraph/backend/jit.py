"""The JIT front door: a torch.compile backend that rewrites the joint graph before Inductor sees it."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args
from weakref import WeakKeyDictionary, ref

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo import trace_rules
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.external_utils import wrap_inline
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._functorch import config as functorch_config
from torch._guards import CompileContext
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, GraphModule

from qgraph.backend.attention import take_attention_apart
from qgraph.backend.cache_key import cache_key
from qgraph.backend.decompositions import decompositions
from qgraph.backend.outline import Layer, Outline, graph_facts, input_index
from qgraph.errors import GraphError, ModelError, QGraphError
from qgraph.ops import describe_lowering
from qgraph.ops.history import make_store
from qgraph.passes import (
    Report,
    Target,
    rewrite,
)
from qgraph.policy import Policy, check_blocks, load_policy

Backend = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]
# Kept beside the models, not in them: a copy of a model is not compiled and must not say it is.
# The compiled call refers to its model, so only a weak reference to it lets the model go.
_COMPILED: WeakKeyDictionary[nn.Module, tuple[Report, ref[Any]]] = WeakKeyDictionary()
Model = TypeVar("Model", bound=nn.Module)
PolicyLike = Policy | str | os.PathLike[str]


class QGraphWarning(UserWarning):
    """Something a user should know that does not stop the run."""


def as_policy(policy: PolicyLike) -> Policy:
    """Return a loaded policy: itself, or read from a path or a recipe's name.

    Raises: PolicyError as `load_policy`.
    """
    return policy if isinstance(policy, Policy) else load_policy(policy)


def compile(
    model: Model,
    policy: PolicyLike = "nvfp4",
    *,
    target: Target = "emulate",
    codegen: bool = True,
    **options: Any,
) -> Model:
    """Compile `model` in place so that its matrix products run as `policy` says; return it.

    The class, parameters, `state_dict`, `save_pretrained` and `generate` stay as they were. Graphs
    are captured and rewritten at the first call; `coverage(model)` then tells what was done.
    `options` go to `nn.Module.compile` (`dynamic`, `fullgraph`, ...). The target `emulate` multiplies
    what codes are worth, in the compute dtype; `native` multiplies the codes themselves where the
    device can and it pays (`native-always`: where it can), and the report says which products it
    could not. Without `codegen` the rewritten
    graph runs op by op, with no C++ or Triton compiler: slower steps, a fast first call, for debugging.

    A policy's `coverage` is held at each training call that compiled something: it raises PolicyError.

    Raises: PolicyError if the policy is wrong, or names blocks the model does not have;
        ModelError if `model` is not a module, the target is unknown or `options` names a backend.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"qgraph.compile takes a torch.nn.Module, not {type(model).__name__}")
    if "backend" in options:
        raise ModelError("qgraph.compile chooses the backend itself", "leave backend out")
    target = check_target(target)
    chosen, outline = as_policy(policy), Outline.of(model)
    check_blocks(chosen, [Layer.at(name, outline.blocks) for name in outline.modules.values()])
    if chosen.history_length:
        store = make_store(model, set(outline.modules.values()), chosen.history_length)
        outline = replace(outline, history=store)
    report = Report(
        policy=chosen,
        lowering=describe_lowering(device_of(model)),
        not_captured=set(outline.weights.values()),
    )
    backend = make_backend(chosen, report, outline, target=target, codegen=codegen)
    _compile_in_place(model, backend, options)
    if chosen.min_flops is not None:
        model._compiled_call_impl = _hold_coverage(model._compiled_call_impl, report)
    _COMPILED[model] = (report, ref(model._compiled_call_impl))
    return model


def check_target(name: str) -> Target:
    """Return the target of this name.

    Raises: ModelError naming the targets there are.
    """
    found = next((target for target in get_args(Target) if target == name), None)
    if found is None:
        raise ModelError(f"unknown target '{name}'", f"use one of: {', '.join(get_args(Target))}")
    return found  # type: ignore[no-any-return]


def coverage(model: nn.Module) -> Report:
    """Return the report of a model given to `compile`, filled with the graphs compiled so far.

    Raises: ModelError if the model was not compiled by qgraph, or no longer is: a copy or an
        unpickled model is not compiled, and `model.compile()` replaces what qgraph did.
    """
    known = _COMPILED.get(model)
    if known is None:
        raise ModelError(
            f"this {type(model).__name__} was not compiled by qgraph (copies are not)",
            "call qgraph.compile(model) first",
        )
    report, call = known
    if model._compiled_call_impl is not call():
        raise ModelError(
            f"this {type(model).__name__} was compiled by something else after qgraph.compile",
            "call qgraph.compile(model) last",
        )
    return report


def _compile_in_place(model: nn.Module, backend: Backend, options: dict[str, Any]) -> None:
    # Dynamo counts recompilations per class unless told otherwise, and past its limit runs the
    # next model of that class unquantized.
    options = {"isolate_recompiles": True, **options}
    model.compile(backend=backend, **options)
    if trace_rules.check(type(model).forward):
        # Dynamo does not enter a forward that is torch's own (nn.Linear, nn.Sequential): wrap it.
        call = wrap_inline(model._call_impl)
        model._compiled_call_impl = torch.compile(call, backend=backend, **options)


def _hold_coverage(call: Callable[..., Any], report: Report) -> Callable[..., Any]:
    """Return `call` such that a training step which compiled something checks the coverage after.

    Dynamo then knows every graph of the forward, and with each its backward.
    """
    checked = 0

    def held(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        result = call(*args, **kwargs)
        if report.graphs > checked and torch.is_grad_enabled():
            report.check()
            checked = report.graphs
        return result

    return held


def make_backend(
    policy: Policy,
    report: Report,
    outline: Outline | None = None,
    *,
    target: Target = "emulate",
    codegen: bool = True,
) -> Backend:
    """Return a torch.compile backend for one policy; what it does is added to `report`.

    Each policy has a backend object of its own because Dynamo guards on the object: a hook in
    Inductor's global configuration is not guarded, and a second policy would get the first's code.
    """
    times: Counter[object] = Counter()

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        _guard_modules(module)
        take_attention_apart(module, policy, outline)
        frame = getattr(CompileContext.current_compile_id(), "frame_id", None)
        part = (frame, frozenset(id(v) for v in inputs if isinstance(v, nn.Parameter)))
        times[part] += 1
        if times[part] == dynamo_config.recompile_limit:
            warnings.warn(
                f"one part of the model was compiled {times[part]} times, Dynamo's recompile_limit: if "
                "its inputs change again it runs without quantization; pass dynamic=True to "
                "qgraph.compile, or raise torch._dynamo.config.recompile_limit",
                QGraphWarning,
                stacklevel=2,
            )
        if outline is not None:
            report.not_captured -= {outline.weights.get(id(value), "") for value in inputs}
        rewriting = _Rewrite(
            policy=policy,
            report=report,
            parameters=frozenset(i for i, v in enumerate(inputs) if isinstance(v, nn.Parameter)),
            outline=outline,
            frame=frame,
            target=target,
        )
        if not codegen:
            return _run_op_by_op(rewriting, module, inputs)
        # AOTAutograd's cache would skip the pass, and with it the report. Inductor's own cache,
        # keyed by the rewritten graph and `uuid`, stays on.
        with functorch_config.patch(enable_autograd_cache=False):
            compiled: Any = compile_fx(
                module,
                inputs,
                config_patches={"joint_custom_pre_pass": rewriting},
                decompositions=decompositions(),
            )
        return compiled  # type: ignore[no-any-return]

    return backend


def dynamo_backend(module: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """Compile one graph for `torch.compile(model, backend="qgraph", options={"policy": ...})`."""
    options = dict(kwargs.get("options") or {})
    policy = as_policy(options.pop("policy", "nvfp4"))
    if options:
        raise ModelError(
            f"the qgraph backend does not know the option {', '.join(sorted(options))}",
            'options={"policy": ...}',
        )
    if policy.min_flops is not None:
        raise ModelError(
            "the qgraph backend sees one graph at a time and cannot hold the policy's coverage",
            "use qgraph.compile(model, policy), or remove coverage",
        )
    report = Report(policy=policy, lowering=describe_lowering(_device_of_inputs(inputs)))
    return make_backend(policy, report)(module, inputs)


def _guard_modules(module: GraphModule) -> None:
    """Make Dynamo compile this frame anew for each module it is called on.

    After a graph break, blocks of one class would share the first block's graph, and with it what
    the policy decided for that block.
    """
    for node in module.graph.find_nodes(op="placeholder"):
        source, owner = getattr(node, "_dynamo_source", None), None
        while source is not None:
            if type(source).__name__.endswith("NNModuleSource"):
                owner = source.base
            source = getattr(source, "base", None)
        if owner is not None:
            install_guard(owner.make_guard(GuardBuilder.ID_MATCH))


def _run_op_by_op(
    rewriting: _Rewrite, module: GraphModule, inputs: Sequence[Any]
) -> Callable[..., Any]:
    def partition(
        joint: GraphModule, joint_inputs: Any, **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        rewriting(joint.graph)
        joint.recompile()
        return min_cut_rematerialization_partition(joint, joint_inputs, **kwargs)  # type: ignore[no-any-return]

    def infer(graph_module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        rewriting(graph_module.graph)
        graph_module.recompile()
        return nop(graph_module, _inputs)

    def nop(graph_module: GraphModule, _inputs: Any) -> Callable[..., Any]:
        return make_boxed_func(graph_module.forward)  # type: ignore[no-any-return]

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=nop,
        bw_compiler=nop,
        inference_compiler=infer,
        partition_fn=partition,
        decompositions=decompositions(),
    )(module, inputs)
    return compiled


@dataclass(frozen=True, kw_only=True)
class _Rewrite(CustomGraphPass):
    """Inductor's hook: rewrites one joint graph."""

    policy: Policy
    report: Report
    parameters: frozenset[int]  # positions among the graph's inputs
    outline: Outline | None
    frame: int | None  # Dynamo's number of the code that was captured
    target: Target

    def __call__(self, graph: Graph) -> None:
        start = time.perf_counter()
        facts = graph_facts(graph, lambda node: input_index(node) in self.parameters, self.outline)
        try:
            plans = rewrite(graph, self.policy, facts, target=self.target)
        except QGraphError:
            raise
        except Exception as error:  # Dynamo takes some errors for a reason to run eagerly
            raise GraphError(f"a pass failed on this graph: {error!r}") from error
        self.report.add(plans, self.frame)
        self.report.pass_seconds += time.perf_counter() - start
        # Parts that the policy keeps are no reason to warn; products no rule speaks about are.
        left = {plan.reason for plan in plans if plan.status in ("unmatched", "unsupported")}
        if left and self.policy.quantizes and not self.report.quantized:
            warnings.warn(
                f"policy {self.policy.name}: nothing is quantized so far: {'; '.join(sorted(left))}",
                QGraphWarning,
                stacklevel=2,
            )

    def uuid(self) -> str:
        key = f"{cache_key(self.policy)} {self.target}"
        if self.outline is None or self.outline.history is None:
            return key
        # Code that reads histories is of no use to another model, whose rows lie elsewhere.
        names = sorted(set(self.outline.modules.values()))
        return f"{key} {self.outline.history} {names}"


def device_of(model: nn.Module) -> str:
    """Return the type of device a model is on, `cpu` if it has no parameters."""
    return next((p.device.type for p in model.parameters()), "cpu")


def _device_of_inputs(inputs: Sequence[Any]) -> str:
    return next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
