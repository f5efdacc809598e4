"""The key `functions` through both doors: replaced where it says, known as attention's, and reported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph.doors.facts import rewrite_model
from qgraph.passes import report_text
from qgraph.policy import Policy, load_policy
from tests.passes.graphs import policy

RULES = """
  - match: {op: [qk, pv]}
    fprop: {lhs: int8, rhs: int8}
functions: [{modules: "first*", softmax: two_pass}]
"""


class Attention(nn.Module):
    """Attention written out, its softmax as a function, a method or a module."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96, bias=False)
        self.way, self.softmax = way, nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        scores = q @ k.mT / 6
        if self.way == "function":
            weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32)
        else:
            weights = self.softmax(scores) if self.way == "module" else scores.softmax(-1)
        return torch.matmul(weights.to(v.dtype), v)


class Two(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second = Attention(way), Attention(way)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.second(self.first(x)).square())


def model(way: str) -> Two:
    torch.manual_seed(0)
    return Two(way)


def gradient(found: nn.Module, x: Tensor) -> Tensor:
    found.zero_grad()
    found(x).backward()
    weight = next(found.parameters())
    assert weight.grad is not None
    return weight.grad.clone()


@pytest.mark.parametrize("way", ["function", "method", "module"])
def test_a_softmax_is_replaced_where_the_policy_says(way: str) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    compiled = qgraph.compile(model(way), policy(RULES), codegen=False)
    found = gradient(compiled, x)
    report = qgraph.coverage(compiled)
    assert dict(report.replaced) == {"softmax two_pass in first*": 1}
    assert "softmax two_pass in first*: 1 sites" in report_text(report)
    # Its products are attention's still: rules on qk and pv speak about them.
    assert [e.op for e in report.entries if e.role == "fprop"].count("qk") == 2
    assert len(report.quantized) == 4
    without = qgraph.compile(model(way), plain(), codegen=False)
    usual = gradient(without, x)
    assert not torch.equal(found, usual)
    assert torch.allclose(found, usual, rtol=1e-2, atol=1e-3)


def plain() -> Policy:
    return policy(RULES.split("functions:")[0])


def test_convert_shows_and_reports_it() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 16, 32)
    done = qgraph.conversion(qgraph.convert(model("method"), policy(RULES), {"x": x}))
    assert dict(done.report.replaced) == {"softmax two_pass in first*": 1}
    assert done.graph_before.count("aten.exp2") == 1
    assert {e.op for e in done.report.quantized} == {"qk", "pv"}


def test_a_rule_that_replaces_nothing_is_reported() -> None:
    torch._dynamo.reset()
    chosen = policy(RULES.replace('"first*"', '"third"'))
    compiled = qgraph.compile(model("function"), chosen, codegen=False)
    gradient(compiled, torch.randn(2, 16, 32))
    assert "warning: functions: softmax two_pass in third: no softmax" in report_text(
        qgraph.coverage(compiled), 200
    )


def test_only_code_of_graphs_that_change_is_written_anew() -> None:
    plain = torch.fx.symbolic_trace(model("function"))
    before = type(plain).forward
    assert not rewrite_model(plain, load_policy("nvfp4"), None)
    assert type(plain).forward is before
    rewrite_model(plain, policy(RULES.replace("first*", "*")), None)
    assert type(plain).forward is not before
    assert "_softmax" in plain.code
