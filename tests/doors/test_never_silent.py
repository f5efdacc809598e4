"""Ways a model could train in high precision without anyone knowing, and how each is told."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import qgraph
from qgraph.errors import ModelError, PolicyError, QGraphWarning
from qgraph.passes import report_json, report_text
from qgraph.policy import Policy, load_policy_text

KEEP_LAST = """
qgraph: 1
name: keep-last
formats:
  f: {element: e2m1, block: [1, 16], scale: ue8m0}
rules:
  - {match: {last_blocks: 2}, keep: high}
  - match: {op: linear}
    fprop: {input: f, weight: f}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(x))


class Broken(nn.Module):
    """Blocks with a graph break between them, so that Dynamo compiles each block on its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return x.sum()


class PartlyEager(nn.Module):
    """One linear that Dynamo sees and one that it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden = nn.Linear(32, 32), nn.Linear(32, 32)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _eagerly(self, x: Any) -> Any:
        return nn.functional.linear(x, self.hidden.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self._eagerly(self.seen(x).relu()))


def policy() -> Policy:
    return load_policy_text(KEEP_LAST, "p.yaml")


@pytest.mark.parametrize("count", [4, 12])  # 12: more than Dynamo's recompile limit
@pytest.mark.filterwarnings("error::qgraph.QGraphWarning")
def test_blocks_compiled_apart_each_get_their_own_rules(count: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Broken(count), torch.randn(16, 32)
    qgraph.compile(model, policy(), codegen=False)
    for _ in range(2):
        model(x).backward()
    forward = {e.module: e.status for e in qgraph.coverage(model).entries if e.role == "fprop"}
    assert forward == {
        f"layers.{i}.up": "kept" if i >= count - 2 else "quantized" for i in range(count)
    }
    assert not qgraph.coverage(model).not_captured


def test_a_weight_in_no_graph_is_named() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(PartlyEager(), "int8", codegen=False)
    model(torch.randn(16, 32)).backward()
    report = qgraph.coverage(model)
    assert report.not_captured == {"hidden.weight"}
    assert "1 weights are in no captured graph" in report_text(report)
    assert report_json(report)["not_captured"] == ["hidden.weight"]
    told = "1 weights are in no captured graph and are not quantized: hidden.weight"
    callback, state = qgraph.CoverageCallback(), hf.TrainerState()
    with pytest.warns(QGraphWarning, match=told):
        callback.on_step_end(None, state, None, model=model)
    (logged,) = state.log_history  # of `seen`, whose input needs no gradient
    assert (logged["qgraph/products"], logged["qgraph/flops/int8"]) == (2, 1.0)
    callback.on_step_end(None, state, None, model=model)  # once is enough
    assert len(state.log_history) == 1


def demanding(share: str) -> Policy:
    return load_policy_text(
        KEEP_LAST.replace("rules:", f"coverage: {{min_flops: {share}}}\nrules:")
    )


def test_training_stops_where_less_is_quantized_than_demanded() -> None:
    # 3 of 4 blocks' forward products of 11 products: the first block's input needs no gradient.
    model = qgraph.compile(Broken(5), demanding("21.5%"), codegen=False)
    with pytest.raises(
        PolicyError, match=r"21\.4% of product FLOPs are quantized, 21\.5% are dem"
    ) as e:
        model(torch.randn(16, 32))
    assert "left: 42.9% kept: rule 1" in e.value.problem
    torch._dynamo.reset()
    model = qgraph.compile(Broken(5), demanding("21.4%"), codegen=False)
    model(torch.randn(16, 32)).backward()
    assert qgraph.coverage(model).share == pytest.approx(3 / 14)


def test_evaluation_is_not_held_to_what_training_must_reach() -> None:
    model = qgraph.compile(Broken(5), demanding("100%"), codegen=False)
    with torch.no_grad():
        model(torch.randn(16, 32))
    with pytest.raises(PolicyError, match="100% are demanded"):
        model(torch.randn(16, 32))


def test_weights_in_no_graph_leave_coverage_unknown() -> None:
    model = qgraph.compile(PartlyEager(), demanding("1%"), codegen=False)
    with pytest.raises(PolicyError, match=r"1 weights are in no captured graph.*hidden\.weight"):
        model(torch.randn(16, 32))


def test_graphs_compiled_later_are_held_to_the_coverage_too() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Block()

        def forward(self, x: Tensor, deep: bool) -> Any:
            x = self.first(x)
            return (x @ x.T @ x).sum() if deep else x.sum()

    text = """
qgraph: 1
name: first-only
coverage: {min_flops: 60%}
rules:
  - match: {op: linear}
    fprop: {input: e4m3/row/fp32}
    wgrad: {input: e4m3/row/fp32}
"""
    model = qgraph.compile(Later(), load_policy_text(text), codegen=False)
    model(torch.randn(16, 32), False).backward()
    assert qgraph.coverage(model).share == 1
    with pytest.raises(PolicyError, match="60% are demanded"):
        model(torch.randn(16, 32), True)


def test_the_backend_by_name_cannot_hold_a_coverage() -> None:
    options: Any = {"policy": demanding("1%")}
    model: Any = torch.compile(Block(), backend="qgraph", options=options)
    with pytest.raises(Exception, match="cannot hold the policy's coverage"):
        model(torch.randn(16, 32))


def test_a_copy_does_not_say_it_is_compiled() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(Block(), "int8", codegen=False)
    model(torch.randn(16, 32)).sum().backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ModelError, match=r"was not compiled by qgraph \(copies are not\)"):
            qgraph.coverage(other)
    assert qgraph.coverage(model).quantized


def test_a_compiled_model_is_freed_with_its_last_reference() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(Block(), "int8", codegen=False)
    held = weakref.ref(model)
    assert qgraph.coverage(model).graphs == 0
    del model
    gc.collect()
    assert held() is None


def test_compiling_again_with_something_else_is_noticed() -> None:
    model = qgraph.compile(Block(), "int8", codegen=False)
    model.compile(backend="eager")
    with pytest.raises(ModelError, match=r"compiled by something else after qgraph\.compile"):
        qgraph.coverage(model)


def test_a_block_that_is_not_there_is_told_before_any_call() -> None:
    text = KEEP_LAST.replace("last_blocks: 2", "blocks: [7]")
    with pytest.raises(
        PolicyError, match=r"block 7 is out of range\n  fix: this model has 4 blocks"
    ):
        qgraph.compile(Broken(4), load_policy_text(text, "p.yaml"))


class Own(nn.Module):
    """A product of the module itself, with no layer of torch's that could be compiled alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def test_shapes_past_the_recompile_limit_are_warned_of() -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):  # twice: for training and evaluation
        model = qgraph.compile(Own(), "int8", codegen=False, dynamic=False)
    model(torch.randn(16, 32))
    with pytest.warns(qgraph.QGraphWarning, match="if its inputs change again it runs without"):
        model(torch.randn(32, 32))
    with pytest.warns(
        qgraph.QGraphWarning, match=r"1 products run outside .*: aten::linear .*recompile_limit"
    ):
        model(torch.randn(48, 32))
    assert [product.op for product in qgraph.coverage(model).elsewhere] == ["aten::linear"]


def test_layers_are_quantized_past_the_recompile_limit_of_what_calls_them() -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        model = qgraph.compile(Block(), "int8", codegen=False, dynamic=False)
    plain = Block()
    plain.load_state_dict(model.state_dict())
    for size in (16, 32, 48):
        x = torch.randn(size, 32)
        assert not torch.equal(model(x), plain(x))


def test_two_policies_and_nine_shapes_on_one_class_all_run_quantized() -> None:
    """Dynamo alone makes eight graphs of a piece of code; where torch.compile takes no limit too."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    high = Block()
    models = {name: copy.deepcopy(high) for name in ("int8", "mxfp8")}
    for name, model in models.items():
        qgraph.compile(model, name, codegen=False, dynamic=False)
    own = torch._dynamo.config.recompile_limit
    for rows in range(1, own + 2):
        x = torch.randn(32 * rows, 32)
        first, second = (model(x) for model in models.values())
        assert len({tuple(y.flatten().tolist()) for y in (first, second, high(x))}) == 3
    assert not any(qgraph.coverage(model).elsewhere for model in models.values())
    assert torch._dynamo.config.recompile_limit == own


def test_an_infinite_gradient_stays_visible_in_int8() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(Block(), "int8", codegen=False)
    gradient = torch.zeros(16, 32)
    gradient[3, 5] = torch.inf
    model(torch.randn(16, 32)).backward(gradient)
    assert model.up.weight.grad is not None
    assert not bool(model.up.weight.grad.isfinite().all())


def test_half_precision_uses_the_kernels_and_the_same_values() -> None:
    x = torch.randn(32, 48, generator=torch.Generator().manual_seed(0)).half()
    from qgraph import numerics, ops
    from qgraph.formats import parse_format

    text = "e2m1/1x16/e4m3/fp32"
    assert torch.equal(ops.fake_quant(x, text, -1), numerics.fake_quant(x, parse_format(text), -1))
    turned = numerics.hadamard(x, numerics.TE_SIGNS, -2, "bf16")
    assert torch.equal(ops.hadamard(x, numerics.TE_SIGNS, -2, "bf16"), turned)
    found = ops.rotate_quant(x, numerics.TE_SIGNS, "bf16", text, -2)
    assert torch.equal(found, numerics.fake_quant(turned, parse_format(text), -2))


def test_two_graphs_of_one_module_keep_their_own_rows() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(32, 32)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = x @ self.first
            torch._dynamo.graph_break()
            return (x @ self.second).sum()

    torch._dynamo.reset()
    model = qgraph.compile(Twice(), "int8", codegen=False)
    model(torch.randn(16, 32)).backward()
    roles = Counter(entry.role for entry in qgraph.coverage(model).entries)
    assert roles == {"fprop": 2, "wgrad": 2, "dgrad": 1}
