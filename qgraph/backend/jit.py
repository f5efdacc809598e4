"""The JIT front door: a torch.compile backend that rewrites the joint graph before Inductor sees it."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo import trace_rules
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.external_utils import wrap_inline
from torch._functorch import config as functorch_config
from torch._guards import CompileContext
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, GraphModule

from qgraph.backend.cache_key import cache_key
from qgraph.backend.decompositions import decompositions
from qgraph.errors import ModelError
from qgraph.ops import describe_lowering
from qgraph.passes import GraphFacts, Report, find_sites, rewrite, stacks_of
from qgraph.policy import Policy, check_blocks, load_policy

Backend = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]
Model = TypeVar("Model", bound=nn.Module)
PolicyLike = Policy | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What the passes need of a model that a graph does not hold; see `GraphFacts`."""

    blocks: dict[str, int]
    modules: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Outline:
        """Return the stacks of blocks in `model`, by path, and its modules' paths, by id."""
        blocks = {}
        for name, module in model.named_modules():
            kinds = {type(child) for child in module.children()}
            # A Sequential is a stack if its children are alike; a head such as (Flatten, Linear) is not.
            if isinstance(module, nn.ModuleList) or (
                isinstance(module, nn.Sequential) and len(kinds) == 1
            ):
                blocks[name] = len(module)
        return cls(
            blocks=blocks, modules={str(id(module)): name for name, module in model.named_modules()}
        )


class QGraphWarning(UserWarning):
    """Something a user should know that does not stop the run."""


def as_policy(policy: PolicyLike) -> Policy:
    """Return a loaded policy: itself, or read from a path or a recipe's name.

    Raises: PolicyError as `load_policy`.
    """
    return policy if isinstance(policy, Policy) else load_policy(policy)


def compile(
    model: Model, policy: PolicyLike = "nvfp4", *, codegen: bool = True, **options: Any
) -> Model:
    """Compile `model` in place so that its matrix products run as `policy` says; return it.

    The class, parameters, `state_dict`, `save_pretrained` and `generate` stay as they were. Graphs
    are captured and rewritten at the first call; `coverage(model)` then tells what was done.
    `options` go to `nn.Module.compile` (`dynamic`, `fullgraph`, ...). Without `codegen` the rewritten
    graph runs op by op, with no C++ or Triton compiler: slower steps, a fast first call, for debugging.

    Raises: PolicyError if the policy is wrong, or names blocks the model does not have;
        ModelError if `model` is not a module or `options` names a backend.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"qgraph.compile takes a torch.nn.Module, not {type(model).__name__}")
    if "backend" in options:
        raise ModelError("qgraph.compile chooses the backend itself", "leave backend out")
    chosen = as_policy(policy)
    report = Report(policy=chosen, lowering=describe_lowering(_device_of(model)))
    backend = make_backend(chosen, report, Outline.of(model), codegen=codegen)
    _compile_in_place(model, backend, options)
    # Not a submodule or a parameter: kept out of state_dict and of deepcopies' way.
    object.__setattr__(model, "_qgraph_report", report)
    return model


def _compile_in_place(model: nn.Module, backend: Backend, options: dict[str, Any]) -> None:
    # Dynamo counts recompilations per class unless told otherwise, and past its limit runs the
    # next model of that class unquantized.
    options = {"isolate_recompiles": True, **options}
    model.compile(backend=backend, **options)
    if trace_rules.check(type(model).forward):
        # Dynamo does not enter a forward that is torch's own (nn.Linear, nn.Sequential): wrap it.
        call = wrap_inline(model._call_impl)
        model._compiled_call_impl = torch.compile(call, backend=backend, **options)


def coverage(model: nn.Module) -> Report:
    """Return the report of a model given to `compile`, filled with the graphs compiled so far.

    Raises: ModelError if the model was not compiled by qgraph.
    """
    report = getattr(model, "_qgraph_report", None)
    if not isinstance(report, Report):
        raise ModelError(
            f"this {type(model).__name__} was not compiled by qgraph",
            "call qgraph.compile(model) first",
        )
    return report


def make_backend(
    policy: Policy, report: Report, outline: Outline | None = None, *, codegen: bool = True
) -> Backend:
    """Return a torch.compile backend for one policy; what it does is added to `report`.

    Each policy has a backend object of its own because Dynamo guards on the object: a hook in
    Inductor's global configuration is not guarded, and a second policy would get the first's code.
    """
    frames: Counter[object] = Counter()

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiling = CompileContext.current_compile_id()
        frames[frame := getattr(compiling, "frame_id", None)] += 1
        if frames[frame] == dynamo_config.recompile_limit:
            warnings.warn(
                f"one frame was compiled {frames[frame]} times, Dynamo's recompile_limit: further input "
                "shapes run without quantization; pass dynamic=True or raise the limit",
                QGraphWarning,
                stacklevel=2,
            )
        rewriting = _Rewrite(policy, report, _parameter_indices(inputs), outline)
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
    report = Report(policy=policy, lowering=describe_lowering(_device_of_inputs(inputs)))
    return make_backend(policy, report)(module, inputs)


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


class _Rewrite(CustomGraphPass):
    """Inductor's hook: rewrites one joint graph."""

    def __init__(
        self, policy: Policy, report: Report, parameters: frozenset[int], outline: Outline | None
    ) -> None:
        self.policy, self.report, self.parameters, self.outline = (
            policy,
            report,
            parameters,
            outline,
        )

    def __call__(self, graph: Graph) -> None:
        start = time.perf_counter()
        facts = graph_facts(graph, lambda node: _input_index(node) in self.parameters, self.outline)
        if self.outline is not None:
            check_blocks(self.policy, find_sites(graph, facts))
        plans = rewrite(graph, self.policy, facts)
        self.report.add(plans)
        self.report.pass_seconds += time.perf_counter() - start
        trains = any(node.meta.get("partitioner_tag") == "is_backward" for node in graph.nodes)
        if (
            trains
            and plans
            and self.policy.quantizes
            and not any(p.status == "quantized" for p in plans)
        ):
            warnings.warn(
                f"policy {self.policy.name}: none of the {len(plans)} products of this graph is quantized: "
                f"{plans[0].reason}",
                QGraphWarning,
                stacklevel=2,
            )

    def uuid(self) -> str:
        return cache_key(self.policy)


def graph_facts(
    graph: Graph, is_parameter: Callable[[torch.fx.Node], bool], outline: Outline | None
) -> GraphFacts:
    """Return what the passes must know about `graph`; without an outline, count the blocks it shows."""
    names = frozenset(n.name for n in graph.nodes if n.op == "placeholder" and is_parameter(n))
    if outline is None:
        sites = find_sites(graph, GraphFacts(parameters=names))
        return GraphFacts(parameters=names, blocks=stacks_of(site.module for site in sites))
    return GraphFacts(parameters=names, blocks=outline.blocks, modules=outline.modules)


def _parameter_indices(inputs: Sequence[Any]) -> frozenset[int]:
    return frozenset(i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter))


def _input_index(node: torch.fx.Node) -> int | None:
    return getattr(node.meta.get("desc"), "idx", None)


def _device_of(model: nn.Module) -> str:
    return next((p.device.type for p in model.parameters()), "cpu")


def _device_of_inputs(inputs: Sequence[Any]) -> str:
    return next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
