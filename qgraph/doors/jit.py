"""The JIT front door: compiling a model in place, and the backend that torch.compile knows by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args
from weakref import ref

import torch
from torch import nn
from torch.fx import GraphModule

from qgraph.compat import dynamo, modules
from qgraph.doors.audit import Audit
from qgraph.doors.callers import Callers
from qgraph.doors.entrances import close_entrances, followed, open_entrances
from qgraph.doors.facts import Outline
from qgraph.doors.holding import ask_for_run, follow_blocks, hold_coverage
from qgraph.doors.parallel import among_processes
from qgraph.doors.parameters import store_parameters
from qgraph.doors.rewriting import Backend, make_backend
from qgraph.doors.tuning import check_options
from qgraph.errors import ModelError
from qgraph.ops import describe_lowering, make_store, state
from qgraph.passes import Report, Target
from qgraph.policy import Policy, check_blocks, check_globs, check_named_parts, load_policy, stage

Model = TypeVar("Model", bound=nn.Module)
PolicyLike = Policy | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a model is compiled, whatever its policy: see `compile`."""

    target: Target
    codegen: bool
    strict: bool
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What is known of a compiled model: its policy, how it was compiled, and what came of it.

    `call` refers to the compiled call, of the stage of the policy that runs now: weakly, because the
    call refers to its model, which must not be kept.
    """

    policy: Policy
    report: Report
    call: ref[Any]
    outline: Outline
    ways: Ways


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
    strict: bool = False,
    **options: Any,
) -> Model:
    """Compile `model` in place so that its matrix products run as `policy` says; return it.

    The class, parameters, `state_dict`, `save_pretrained` and `generate` stay as they were. Graphs
    are captured and rewritten at the first call; `coverage(model)` then tells what was done.
    `options` go to `nn.Module.compile`: `dynamic`, `fullgraph`, and `mode` or `options`, under which
    Inductor then compiles. The target `emulate` multiplies
    what codes are worth, in the compute dtype; `native` multiplies the codes themselves where the
    device can and it pays (`native-always`: where it can), and the report says which products it
    could not. Without `codegen` the rewritten
    graph runs op by op, with no C++ or Triton compiler: slower steps, a fast first call, for debugging.

    The first calls of each kind are watched for products that torch runs outside the compiled graphs, in
    high precision: they are warned of and stand in the report, and with `strict` they are an error.
    A policy's `coverage` is held at each training call that changed the report: it raises PolicyError.
    A policy's `schedule` and `monitors` take a run that counts steps: `qgraph.Run` or
    `qgraph.QGraphCallback`; a training call without one warns.

    Raises: PolicyError if the policy is wrong, or names blocks or parts the model does not have;
        ModelError if `model` is not a module, the target is unknown, or as `check_options`.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"qgraph.compile takes a torch.nn.Module, not {type(model).__name__}")
    check_options(options, codegen=codegen)
    target = check_target(target)
    chosen, outline = as_policy(policy), Outline.of(model)
    layers = outline.layers
    check_named_parts(chosen, layers)
    check_blocks(chosen, layers)
    check_globs(chosen, outline.modules.values())
    if chosen.parameters is not None:
        store_parameters(model, chosen.parameters)
    if chosen.history_length:
        store = make_store(model, set(outline.modules.values()), chosen.history_length)
        outline = replace(outline, history=store)
    ways = Ways(target=target, codegen=codegen, strict=strict, options=options)
    _enter(model, chosen, stage(chosen, ()), outline, ways)
    call = modules.compiled_call(model)
    if (chosen.schedule or chosen.monitors) and call is not None:
        replace_call(model, ask_for_run(call, chosen.name))
    return model


def enter_stage(
    model: nn.Module, policy: Policy, observe: tuple[int, bool] | None = None
) -> Report:
    """Compile `model` anew under `policy`, a stage of the one it was compiled under; return the report.

    `observe` is the number of a telemetry recorder, and whether it looks at products.

    The code of the stage before is still there: see `replace_call`.

    Raises: ModelError as `coverage`.
    """
    known = compiled_by_us(model)
    outline = replace(known.outline, weights=Outline.of(model).weights, observe=observe)
    _enter(model, known.policy, policy, outline, known.ways)
    return compiled_by_us(model).report


def replace_call(model: nn.Module, call: Callable[..., Any], report: Report | None = None) -> None:
    """Make `call` what runs when `model` is called: one that wraps the compiled call, or an earlier one."""
    known: Compiled = state.COMPILED[model]
    modules.set_compiled_call(model, call)
    state.COMPILED[model] = replace(known, report=report or known.report, call=ref(call))


def _enter(model: nn.Module, whole: Policy, policy: Policy, outline: Outline, ways: Ways) -> None:
    """Compile `model` in place under `policy`, a stage of `whole`."""
    report = Report(
        policy=policy,
        lowering=describe_lowering(device_of(model)),
        not_captured=set(outline.weights.values()),
    )
    audit = Audit(report, Callers(model), strict=ways.strict) if policy.quantizes else None
    # Past Dynamo's limit, the next model of this class, or block of this model, would run unquantized.
    options = {**dynamo.own_limit(_alike(model)), **ways.options}

    def backend(part: str = "") -> Backend:
        return make_backend(
            policy, report, outline, target=ways.target, codegen=ways.codegen,
            audit=audit, limit=dynamo.limit_of(options), part=part,
        )  # fmt: skip

    close_entrances(model)

    def compiled() -> Callable[..., Any]:
        call = followed(modules.plain_call(model))
        return among_processes(_compile_call(call, backend(), options))

    call = follow_blocks(compiled, model, report, outline.blocks)
    if audit is not None:
        call = audit.hold(call, modules.plain_call(model))
        open_entrances(
            model,
            audit,
            lambda call, part: among_processes(_compile_call(call, backend(part), options)),
        )
    if policy.min_flops is not None:
        call = hold_coverage(call, report)
    modules.set_compiled_call(model, call)
    state.COMPILED[model] = Compiled(
        policy=whole, report=report, call=ref(call), outline=outline, ways=ways
    )


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
    return compiled_by_us(model).report


def compiled_by_us(model: nn.Module) -> Compiled:
    """Return what is known of a model given to `compile`.

    Raises: as `coverage`.
    """
    known: Compiled | None = state.COMPILED.get(model)
    if known is None:
        raise ModelError(
            f"this {type(model).__name__} was not compiled by qgraph (copies are not)",
            "call qgraph.compile(model) first",
        )
    if modules.compiled_call(model) is not known.call():
        raise ModelError(
            f"this {type(model).__name__} was compiled by something else after qgraph.compile",
            "call qgraph.compile(model) last",
        )
    return known


def _compile_call(
    call: Callable[..., Any], backend: Backend, options: dict[str, Any]
) -> Callable[..., Any]:
    return dynamo.within(torch.compile(call, backend=backend, **dynamo.taken(options)), options)


def _alike(model: nn.Module) -> int:
    """Return how many modules with parts of their own run the same code, at least 1.

    Dynamo counts graphs by code: that of a class, and of a decorator for all that it decorates.
    """
    found = Counter(
        getattr(type(module).forward, "__code__", type(module))
        for module in model.modules()
        if [*module.children()]
    )
    return max(found.values(), default=1)


def dynamo_backend(module: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """Compile one graph for `torch.compile(model, backend="qgraph", options={"policy": ...})`.

    The other options are Inductor's.
    """
    options = dict(kwargs.get("options") or {})
    policy = as_policy(options.pop("policy", "nvfp4"))
    tuning = {"mode": kwargs.get("mode"), "options": options or None}
    check_options(tuning, codegen=True)
    if policy.schedule or policy.monitors:
        raise ModelError(
            "the qgraph backend cannot switch policies: this one has a schedule or monitors",
            "use qgraph.QGraphCallback, or qgraph.compile(model, policy) and qgraph.Run",
        )
    if policy.min_flops is not None:
        raise ModelError(
            "the qgraph backend sees one graph at a time and cannot hold the policy's coverage",
            "use qgraph.compile(model, policy), or remove coverage",
        )
    report = Report(policy=policy, lowering=describe_lowering(_device_of_inputs(inputs)))
    return make_backend(policy, report)(module, inputs, **tuning)


def device_of(model: nn.Module) -> str:
    """Return the type of device a model is on, `cpu` if it has no parameters."""
    return next((p.device.type for p in model.parameters()), "cpu")


def _device_of_inputs(inputs: Sequence[Any]) -> str:
    return next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
