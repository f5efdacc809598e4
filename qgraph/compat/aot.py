"""AOTAutograd: forward and backward as one joint graph, cut in two, compiled or run op by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.schemas import JointWithDescriptors
from torch._functorch.aot_autograd import (
    aot_compile_joint_with_descriptors,
    aot_export_joint_with_descriptors,
)
from torch._inductor.compile_fx import compile_fx_inner
from torch.fx import GraphModule

_Call = Callable[..., Any]
Table = dict[Any, _Call]
Halves = tuple[GraphModule, GraphModule]
Cut = Callable[..., Halves]  # as `cut_in_two`
Compile = Callable[[GraphModule, Sequence[Any]], _Call]

Joint = JointWithDescriptors


def export_joint(module: GraphModule, inputs: Mapping[str, Any], decompositions: Table) -> Joint:
    """Return forward and backward of a captured module, of these keyword inputs, as one graph."""
    with ExitStack() as stack:
        return aot_export_joint_with_descriptors(
            stack, module, (), dict(inputs), decompositions=decompositions
        )


def module_of(joint: Joint) -> GraphModule:
    """Return the joint graph's own module."""
    module: GraphModule = joint.graph_module
    return module


def cut_in_two(
    joint: GraphModule, inputs: Sequence[Any], *, num_fwd_outputs: int, **options: Any
) -> Halves:
    """Cut a joint graph into forward and backward as Inductor does.

    The first `num_fwd_outputs` outputs are the forward's results; what it saves comes after them.
    """
    halves: Halves = min_cut_rematerialization_partition(
        joint, inputs, num_fwd_outputs=num_fwd_outputs, **options
    )
    return halves


def compile_joint(joint: Joint, cut: Cut, compiler: Any = compile_fx_inner) -> _Call:
    """Compile a joint graph; the result takes parameters, buffers and the inputs.

    `cut` is as `cut_in_two`; `compiler` gets each half, and is Inductor unless told otherwise.
    """
    module_of(joint).recompile()
    compiled: _Call = aot_compile_joint_with_descriptors(
        joint, partition_fn=cut, fw_compiler=compiler, bw_compiler=compiler
    )
    return compiled


def as_it_is(module: GraphModule, _inputs: Sequence[Any]) -> _Call:
    """Return what runs a graph op by op."""
    return boxed(module.forward)


def boxed(call: _Call) -> _Call:
    """Return `call` such that it takes its arguments in one list, as AOTAutograd gives them."""
    taking: _Call = make_boxed_func(call)
    return taking


def op_by_op(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    cut: Cut,
    infer: Compile,
    decompositions: Table,
    run: Compile = as_it_is,
    run_backward: Compile | None = None,
) -> _Call:
    """Return what runs a graph of Dynamo's without generating code.

    `cut` sees the joint graph, or `infer` a graph without a backward; `run` gives what runs a half.
    """
    compiled: _Call = aot_autograd(
        fw_compiler=run,
        bw_compiler=run_backward or run,
        inference_compiler=infer,
        partition_fn=cut,
        decompositions=decompositions,
    )(module, inputs)
    return compiled
