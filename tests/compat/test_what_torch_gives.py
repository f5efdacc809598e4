"""What torch gives to those who know its private names: it is still what is read from it."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch.optim.lr_scheduler import StepLR
from torch.utils.checkpoint import checkpoint

from qgraph.compat import aten, descriptions, dynamo, fake, meta, modules, stepping, symbolic
from qgraph.compat.names import find
from qgraph.doors.aot import capture

mm = torch.ops.aten.mm.default


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.up(x))


class Checkpointed(Two):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return found


def test_a_joint_graph_still_carries_what_the_passes_read() -> None:
    model = Two()
    graph = capture(model, {"x": torch.randn(4, 8)}).graph
    products = list(graph.find_nodes(op="call_function", target=mm))
    assert [meta.half(node) for node in products] == ["forward", "backward"]
    assert meta.sequence(products[0]) == meta.sequence(products[1]) is not None
    # The key of an entry is the id of the module, as text; the backward's is in a stack of its own.
    assert [list(meta.modules(node))[-1] for node in products] == [str(id(model.up))] * 2
    assert "nn_module_stack" in products[0].meta
    assert "fwd_nn_module_stack" in products[1].meta
    assert all(meta.is_tensor(node) for node in products)
    assert meta.fake_mode(graph) is fake.mode_of(meta.value(products[0]))


def test_inputs_and_results_are_still_told_apart() -> None:
    captured = capture(Two(), {"x": torch.randn(4, 8)})
    graph = captured.graph
    parameter, plain, tangent = (meta.description(n) for n in graph.find_nodes(op="placeholder"))
    told = (descriptions.is_parameter, descriptions.is_tangent)
    assert [[ask(d) for ask in told] for d in (parameter, plain, tangent)] == [
        [True, False], [False, False], [False, True],
    ]  # fmt: skip
    names = [name for name, _ in captured.module.named_parameters()]
    assert [descriptions.state_name(parameter)] == names
    assert captured.parameters == ("up.weight",)
    assert descriptions.input_number(plain) == 0
    assert descriptions.tangent_number(tangent) == 0
    (output,) = graph.find_nodes(op="output")
    results = meta.description(output)
    assert descriptions.count_results(results) == 1
    gradients = [descriptions.gradient_name(found) for found in results]
    assert gradients[:2] == [None, descriptions.state_name(parameter)]


def test_a_checkpointed_graph_still_says_what_is_computed_again() -> None:
    graph = capture(Checkpointed(), {"x": torch.randn(4, 8, requires_grad=True)}).graph
    forward = [
        n for n in graph.find_nodes(op="call_function", target=mm) if meta.half(n) == "forward"
    ]
    assert any(meta.kept_or_not(node) is not None for node in forward)
    assert any("ac_graph_id" in node.meta for node in forward)


def test_compile_fx_takes_patches_and_a_table() -> None:
    assert {"config_patches", "decompositions"} <= set(inspect.signature(compile_fx).parameters)
    assert hasattr(config, "joint_custom_pre_pass")
    assert hasattr(config, "custom_partitioner_fn")


def test_torchs_own_modules_are_not_entered_and_ours_are() -> None:
    assert not dynamo.enters(nn.Linear.forward)
    assert dynamo.enters(Two.forward)


def test_the_limit_is_the_one_that_users_are_told_to_raise() -> None:
    setting, limit = dynamo.limit_setting(), dynamo.recompile_limit()
    assert find(setting) == limit > 0
    assert dynamo.limit_of({}) == limit
    assert dynamo.limit_of({"recompile_limit": 3 * limit}) == 3 * limit
    with dynamo.uncut():
        assert not find("torch._dynamo.config.optimize_ddp")


def test_a_compiled_call_is_what_runs_and_a_copy_has_none() -> None:
    model = Two()
    assert modules.compiled_call(model) is None
    seen: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        seen.append(x)
        found: Tensor = modules.plain_call(model)(x)
        return found

    modules.set_compiled_call(model, call)
    x = torch.randn(4, 8)
    assert torch.equal(model(x), model.forward(x))
    assert len(seen) == 1
    assert modules.compiled_call(model) is call


@pytest.mark.parametrize(
    "written",
    [
        "L['self']._modules['layers']._modules['0']", "L['self'].layers[0]@1", "L['args'][0].layers[0]",
        "L['self']._orig_mod.layers._checkpoint_wrapped_module.0", "_export_root.layers.0",
    ],
)  # fmt: skip
def test_paths_as_dynamo_writes_them(written: str) -> None:
    assert modules.relative_path(written) == "layers.0"


def test_parameters_are_read_behind_a_property() -> None:
    class Halved(nn.Linear):
        @property
        def weight(self) -> Any:  # type: ignore[override]
            return modules.parameters_of(self)["weight"]

    plain = nn.Linear(8, 8)
    stored = plain.weight
    plain.__class__ = Halved
    assert plain.weight is stored
    assert modules.buffers_of(nn.BatchNorm1d(2)).keys() == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_a_scheduler_leaves_a_step_that_is_known_to_it_and_counts_it() -> None:
    class Ours(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            stepping.count_step(self)
            return stepping.without_hooks(torch.optim.SGD.step)(self, closure)

    Ours.step = stepping.as_own_step(Ours.step)  # type: ignore[method-assign]
    ours, late, plain = (
        kind(nn.Linear(2, 2).parameters(), lr=1.0) for kind in (Ours, Ours, torch.optim.SGD)
    )
    first, second, _ = (StepLR(optimizer, 1) for optimizer in (ours, late, plain))
    assert "step" not in vars(ours)
    assert stepping.is_schedulers(vars(plain)["step"])
    ours.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.step()
    with pytest.warns(UserWarning, match=r"before `optimizer.step"):
        second.step()


def test_integers_are_multiplied_and_ops_are_known() -> None:
    a, b = (torch.randint(-127, 128, (32, 32), dtype=torch.int8) for _ in range(2))
    assert torch.equal(aten.int_mm(a, b), a.int() @ b.int())
    assert aten.is_op(mm)
    assert not aten.is_op(torch.relu)


def test_a_fake_tensor_looks_as_on_a_cpu_and_has_no_numbers() -> None:
    mode = fake.new_mode()
    found = fake.as_cpu(mode, torch.randn(3, 4))
    assert (found.shape, found.device.type, fake.mode_of(found)) == ((3, 4), "cpu", mode)


def test_sizes_that_are_not_yet_numbers_have_hints() -> None:
    hints: list[int | None] = []

    def backend(module: Any, inputs: Any) -> Any:
        hints.extend(symbolic.hint(size) for size in inputs if isinstance(size, torch.SymInt | int))
        return module.forward

    torch.compile(lambda x: x * x.shape[0], backend=backend, dynamic=True)(torch.randn(5, 3))
    assert 5 in hints
    assert set(hints) <= {5, 3}
    assert symbolic.hint(7) == 7
    assert symbolic.statically_known_true(True)
