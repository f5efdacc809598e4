"""QGRAPH_VERIFY=1: each quantized operand is held against its definition as it first runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph import ops
from qgraph.errors import GraphError
from qgraph.ops import quantizing
from qgraph.passes import report_text
from qgraph.policy import load_policy_text
from tests.doors.models import one_block

RECIPES = ("nvfp4", "mxfp8", "int8", "fp8")
TINY = """
qgraph: 1
name: tiny
formats: {f: {element: e2m1, block: [1, 16], scale: e4m3}}
rules: [{match: {op: linear}, wgrad: {grad_output: f}}]
"""


@pytest.fixture(autouse=True)
def verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGRAPH_VERIFY", "1")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((-2, -1))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.sum()


def step(policy: Any, **options: Any) -> tuple[nn.Module, list[Tensor]]:
    torch._dynamo.reset()
    model = qgraph.compile(Net(), policy, **{"codegen": False, **options})
    torch.manual_seed(1)
    loss = model(torch.randn(16, 3, 8, 8))
    loss.backward()
    return model, [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sound_run_passes_and_is_the_same_run(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = step(recipe)
    report = qgraph.coverage(model)
    assert report.checked >= len({(e.module, e.role) for e in report.quantized}) > 0
    assert f"QGRAPH_VERIFY: {report.checked} quantized operands" in " ".join(
        report_text(report).split()
    )
    monkeypatch.setenv("QGRAPH_VERIFY", "0")
    model, plain = step(recipe)
    assert qgraph.coverage(model).checked == 0
    assert len(found) == 9
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_code_that_inductor_makes_is_held_too() -> None:
    model, inputs = one_block()
    qgraph.compile(model, "nvfp4_no_keep")
    model(**inputs).loss.backward()
    assert qgraph.coverage(model).checked > 0


def _nothing(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.clone()


def _a_little_more(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: right(*args, **kwargs) * (1 + 2.0**-20)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (_nothing, r"fprop of 'layers\.0': its input .*: quantizing did nothing, all 512 elements"),
        (
            _a_little_more,
            r"fprop of 'layers\.0': its input .* are not what the format's definition",
        ),
    ],
)
def test_a_quantizer_that_is_wrong_is_told_with_its_place(
    breaks: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = "qgraph: 1\nname: one\nrules: [{match: {op: linear}, fprop: {input: int8/row/fp32}}]"
    monkeypatch.setattr("qgraph.ops.define.values", breaks(quantizing.values))
    with pytest.raises(GraphError, match=message):
        step(load_policy_text(policy))
    monkeypatch.setenv("QGRAPH_VERIFY", "")
    step(load_policy_text(policy))  # nobody looks


def test_gradients_that_the_scales_cannot_reach_are_told() -> None:
    torch._dynamo.reset()
    model = qgraph.compile(Net(), load_policy_text(TINY), codegen=False)
    loss = model(torch.randn(16, 3, 8, 8))
    with pytest.raises(GraphError, match=r"wgrad of 'layers\.\d': its grad_output .*moved further"):
        (loss * 1e-6).backward()


def test_only_the_first_run_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = step("int8")
    ran = 0

    def nothing(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal ran
        ran += 1
        return x.clone()

    monkeypatch.setattr("qgraph.ops.define.values", nothing)
    model(torch.randn(16, 3, 8, 8)).backward()
    # Each operand was quantized wrongly, and nobody looked; another model's first run is looked at.
    assert ran >= qgraph.coverage(model).checked > 0
    with pytest.raises(GraphError, match="quantizing did nothing"):
        step("int8")


def test_the_op_passes_on_what_it_is_given() -> None:
    x = torch.randn(4, 32).bfloat16()
    text = "e2m1/1x16/e4m3/fp32"
    seed = torch.tensor([7])
    found = ops.rotate_quant(x, "+-" * 8, "bf16", text, -1, seed, 3)
    again = ops.checked(found, x, "+-" * 8, "bf16", text, -1, seed, 3, None, None, -1, "here")
    assert torch.equal(again, found)
    assert again.data_ptr() != found.data_ptr()
    with pytest.raises(GraphError, match="elsewhere, e2m1/1x16/e4m3/fp32: "):
        ops.checked(found, x, "+-" * 8, "bf16", text, -1, seed, 4, None, None, -1, "elsewhere")
