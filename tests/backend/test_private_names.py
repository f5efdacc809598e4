"""Every private torch name the project uses: where it is gone or changed, this says so first."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qgraph.doors.aot import capture

CODE = Path(__file__).parents[2] / "qgraph"
# Name -> what it is used for.
PRIVATE = {
    "functorch.compile.make_boxed_func": "running a graph op by op",
    "functorch.compile.min_cut_rematerialization_partition": "cutting forward from backward",
    "torch._dynamo.backends.common.aot_autograd": "the door without code generation",
    "torch._dynamo.config": "the recompile limit",
    "torch._dynamo.device_interface": "the stand-ins for a GPU",
    "torch._dynamo.external_utils.wrap_inline": "compiling modules of torch's own",
    "torch._dynamo.functional_export._dynamo_graph_capture_for_export": "the AOT door",
    "torch._dynamo.guards.GuardBuilder": "one graph for each module",
    "torch._dynamo.guards.install_guard": "one graph for each module",
    "torch._dynamo.trace_rules": "knowing modules of torch's own",
    "torch._functorch._aot_autograd.descriptors.BufferAOTInput": "knowing what is there anyway",
    "torch._functorch._aot_autograd.descriptors.GradAOTOutput": "telling outputs from gradients",
    "torch._functorch._aot_autograd.descriptors.ParamAOTInput": "knowing parameters",
    "torch._functorch.aot_autograd.aot_compile_joint_with_descriptors": "the AOT door",
    "torch._functorch.aot_autograd.aot_export_joint_with_descriptors": "the AOT door",
    "torch._functorch.config": "AOTAutograd's cache",
    "torch._guards.CompileContext": "telling captured pieces apart",
    "torch._inductor.codecache.PyCodeCache": "loading generated kernels",
    "torch._inductor.codegen.triton.TritonScheduling": "seeing each generated kernel",
    "torch._inductor.compile_fx._recursive_post_grad_passes": "generating without running",
    "torch._inductor.compile_fx.compile_fx": "the JIT door",
    "torch._inductor.compile_fx.compile_fx_inner": "compiling a capture",
    "torch._inductor.config": "generating without running",
    "torch._inductor.custom_graph_pass.CustomGraphPass": "the JIT door",
    "torch._inductor.custom_graph_pass.CustomPartitionerFn": "storing what the backward needs",
    "torch._inductor.debug.DebugContext": "generating without running",
    "torch._inductor.decomposition.select_decomp_table": "one table for both doors",
    "torch._inductor.dependencies.MemoryDep": "counting bytes",
    "torch._inductor.fx_passes.post_grad.view_to_reshape": "generating without running",
    "torch._inductor.graph.GraphLowering": "generating without running",
    "torch._inductor.ir": "telling results of a call from calls",
    "torch._inductor.runtime.triton_helpers": "the stand-ins for a GPU",
    "torch._inductor.scheduler.Scheduler": "seeing each library call",
    "torch._inductor.utils.Placeholder": "naming generated kernels",
    "torch._subclasses.fake_tensor.FakeTensorMode": "models without weights",
    "torch._inductor.utils.fresh_inductor_cache": "first calls on empty caches",
    "torch._inductor.utils.get_dtype_size": "counting bytes",
    "torch._inductor.virtualized.V": "generating without running",
    "torch._subclasses.fake_tensor.FakeTensor": "models without weights",
}


def used() -> set[str]:
    found: set[str] = set()
    for file in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("torch._", "functorch")
            ):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                found |= {f"torch.{a.name}" for a in node.names if a.name.startswith("_")}
    return found


def test_the_list_above_is_the_list_in_the_code() -> None:
    assert used() == set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
def test_torch_still_has(name: str) -> None:
    module, _, last = name.rpartition(".")
    home = importlib.import_module(module)
    if not hasattr(home, last):
        importlib.import_module(name)  # a module, or gone: the error says which


def test_compile_fx_takes_patches_and_a_table() -> None:
    from torch._inductor.compile_fx import compile_fx

    assert {"config_patches", "decompositions"} <= set(inspect.signature(compile_fx).parameters)
    assert hasattr(torch._inductor.config, "joint_custom_pre_pass")


def test_compile_can_isolate_recompilations() -> None:
    assert "isolate_recompiles" in inspect.signature(torch.compile).parameters


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.up(x))


def test_a_joint_graph_still_carries_what_the_passes_read() -> None:
    model = Two()
    graph = capture(model, {"x": torch.randn(4, 8)}).graph
    products = list(graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default))
    assert [n.meta["partitioner_tag"] for n in products] == ["is_forward", "is_backward"]
    assert products[0].meta["seq_nr"] == products[1].meta["seq_nr"]
    stacks = [products[0].meta["nn_module_stack"], products[1].meta["fwd_nn_module_stack"]]
    # The key of an entry is the id of the module, as text.
    assert [next(reversed(stack)) for stack in stacks] == [str(id(model.up))] * 2
    holders = graph.find_nodes(op="placeholder")
    assert [type(n.meta["desc"]).__name__ for n in holders] == [
        "ParamAOTInput", "PlainAOTInput", "TangentAOTInput",
    ]  # fmt: skip
