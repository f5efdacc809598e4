"""A gradient that does not pass straight through the quantizer, and the other new words of policies."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import qgraph
from qgraph import numerics, ops
from qgraph.errors import GraphError
from qgraph.formats import parse_format, parse_gradient
from qgraph.passes import report_text
from qgraph.policy import load_policy_text
from tests.doors.capture import interpret
from tests.doors.mlp import MLP
from tests.doors.reference import take_step
from tests.passes.graphs import captured, rewrite, verify

HEAD = """
qgraph: 1
name: test
formats:
  narrow: {element: int4, block: row, scale: fp32, range: fixed2}
  tile: {element: e2m1, block: [4, 8], scale: ue5m3}
  codes: {element: nf4, block: [1, 8], scale: fp32}
  eden: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32, dialect: quartet2,
         scale_rounding: eden}
  up: {element: {exponent_bits: 3, mantissa_bits: 2, bias: 2.5}, block: [1, 16], scale: bf16}
transforms:
  step: {hadamard: 16, signs: step, output: fp32}
  site: {hadamard: 16, signs: site, seed: 7}
  run: {hadamard: 16, signs: run, seed: 7}
rules:
"""


class QuantizedLinear(torch.autograd.Function):
    """A linear layer of quantized operands whose gradients pass an estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rules: tuple[str, str, str, str]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rules = rules
        quantized = numerics.fake_quant(x, parse_format(rules[0]), -1)
        return quantized @ numerics.fake_quant(weight, parse_format(rules[1]), -1).mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (x, weight), rules = grads, ctx.saved_tensors, ctx.rules
        to_x = numerics.quant_backward(
            grad @ weight, x, parse_format(rules[0]), -1, parse_gradient(rules[2])
        )
        flat, tokens = grad.flatten(0, -2), x.flatten(0, -2)
        to_weight = numerics.quant_backward(
            flat.mT @ tokens, weight, parse_format(rules[1]), -1, parse_gradient(rules[3])
        )
        return to_x, to_weight, None


class Eager(nn.Module):
    """The MLP with such layers."""

    def __init__(self, model: MLP, rules: tuple[str, str, str, str]) -> None:
        super().__init__()
        self.layers, self.rules = model.layers, rules

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers.values()):
            x = torch.relu(x) if i else x
            x = QuantizedLinear.apply(x, layer.weight, self.rules) + layer.bias  # type: ignore[no-untyped-call]
        return x


@pytest.mark.parametrize(
    ("formats", "gradients"),
    [
        (("narrow", "tile"), ("clipped", "ste")),
        (("narrow", "tile"), ("ste", "dge")),
        (("codes", "tile"), ("dge:3:2", "spline")),
        (("tile", "codes"), ("ste+absmax", "dge+absmax")),
    ],
)
@pytest.mark.parametrize("sizes", [(48, 64, 32), (32, 32, 32)])
def test_gradients_equal_an_eager_layers(
    formats: tuple[str, str], gradients: tuple[str, str], sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = MLP(*sizes)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 20, sizes[0], generator=generator) * 2
    target = torch.randn(2, 20, sizes[-1], generator=generator)
    operands = [
        f"{{format: {f}, gradient: '{g}'}}" for f, g in zip(formats, gradients, strict=True)
    ]
    policy = load_policy_text(
        HEAD
        + f"- {{match: {{op: linear}}, fprop: {{input: {operands[0]}, weight: {operands[1]}}}}}"
    )
    found = {o.format: str(o.format) for o in policy.operands}
    first, second = found.values()
    rules = (first, second, *gradients)
    reference = Eager(deepcopy(model), rules)
    straight = Eager(deepcopy(model), (first, second, "ste", "ste"))
    trace = interpret(model, policy)
    got = take_step(model, x, target, seed=3)
    want, plain = (take_step(m, x, target, seed=3) for m in (reference, straight))
    assert torch.equal(got.output, want.output)
    names = dict(model.named_parameters())
    for name, grad in got.gradients.items():
        assert torch.allclose(grad, want.gradients[name], rtol=1e-5, atol=1e-7), name
    assert set(got.gradients) == {*names, "x"}
    assert any(not torch.allclose(got.gradients[n], plain.gradients[n], rtol=1e-3) for n in names)
    assert trace.calls


def test_the_report_and_verify_know_the_gradient() -> None:
    policy = load_policy_text(
        HEAD + "- {match: {op: linear}, fprop: {input: {format: narrow, gradient: clipped}}}"
    )
    model = MLP(16, 16)
    qgraph.compile(model, policy, codegen=False)
    take_step(model, torch.randn(4, 16), torch.zeros(4, 16), seed=0)
    report = qgraph.coverage(model)
    (entry,) = [e for e in report.entries if e.role == "fprop"]
    assert entry.operands[0].gradient == "clipped"
    assert "input int4/row gradient clipped" in report_text(report)


class Chain(nn.Module):
    """Two linear layers and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(16, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.mlp(x) ** 2)


def test_verify_refuses_a_gradient_that_passes_straight_through() -> None:
    found = captured(Chain(), (8, 16))
    policy = load_policy_text(
        HEAD + "- {match: {op: linear}, fprop: {input: {format: narrow, gradient: clipped}}}"
    )
    graph = found.graph
    plans = rewrite(graph, policy, found.facts)
    node = next(iter(graph.find_nodes(op="call_function", target=ops.quant_backward)))
    product = node.args[0]
    assert isinstance(product, Node)
    node.replace_all_uses_with(product)
    graph.erase_node(node)
    with pytest.raises(GraphError, match="passes straight through, the plan says int4"):
        verify(graph, plans)


@pytest.mark.parametrize("transform", ["run", "site", "step"])
def test_drawn_signs_leave_the_product_as_it_was(transform: str) -> None:
    both = f"{{format: high, transform: {transform}}}"
    policy = load_policy_text(
        HEAD + f"- {{match: {{op: linear}}, wgrad: {{input: {both}, grad_output: {both}}}}}"
    )
    torch.manual_seed(0)
    model, x, target = MLP(16, 16, 16), torch.randn(32, 16), torch.randn(32, 16)
    plain = take_step(deepcopy(model), x, target, seed=1)
    qgraph.compile(model, policy, codegen=False)
    first, again, other = (take_step(model, x, target, seed=s) for s in (1, 1, 2))
    weights = [name for name in first.gradients if name.endswith("weight")]
    tolerance = 1e-5 if transform == "step" else 2e-2  # run and site round the rotated to bf16
    for name in weights:
        assert torch.allclose(first.gradients[name], plain.gradients[name], atol=tolerance)
        assert not torch.equal(first.gradients[name], plain.gradients[name])
        assert torch.equal(first.gradients[name], again.gradients[name])
    redrawn = any(not torch.equal(first.gradients[n], other.gradients[n]) for n in weights)
    assert redrawn == (transform == "step")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic:4", "odd"])
def test_redrawn_signs_go_with_any_rounding(rounding: str) -> None:
    turned = "format: nvfp4, transform: step"
    operands = f"input: {{{turned}}}, grad_output: {{{turned}, rounding: '{rounding}'}}"
    policy = load_policy_text(HEAD + f"- {{match: {{op: linear}}, wgrad: {{{operands}}}}}")
    torch.manual_seed(0)
    model, x, target = MLP(32, 32, 16), torch.randn(3, 7, 32), torch.randn(3, 7, 16)
    plain = take_step(deepcopy(model), x, target, seed=1)
    qgraph.compile(model, policy, codegen=False)
    first, again = (take_step(model, x, target, seed=1) for _ in range(2))
    for name in ("layers.fc0.weight", "layers.fc1.weight"):
        pair = (first.gradients[name].flatten(), plain.gradients[name].flatten())
        assert 0.95 < float(torch.nn.functional.cosine_similarity(*pair, 0)) < 0.99999
        assert torch.equal(first.gradients[name], again.gradients[name])


def test_eden_and_a_real_bias_train_a_step() -> None:
    eden = "{format: eden, transform: step}"
    policy = load_policy_text(
        HEAD + "- match: {op: linear}\n"
        "  fprop: {input: up, weight: {format: up, rounding: odd}}\n"
        f"  wgrad: {{input: {eden}, grad_output: {eden}}}\n"
    )
    torch.manual_seed(0)
    model, x, target = MLP(32, 32, 16), torch.randn(64, 32), torch.randn(64, 16)
    plain = take_step(deepcopy(model), x, target, seed=1)
    qgraph.compile(model, policy, codegen=False)
    got = take_step(model, x, target, seed=1)
    assert len(qgraph.coverage(model).quantized) == 4
    for name, grad in got.gradients.items():
        cosine = torch.nn.functional.cosine_similarity(
            grad.flatten(), plain.gradients[name].flatten(), 0
        )
        assert 0.9 < float(cosine) < 0.99999, name
