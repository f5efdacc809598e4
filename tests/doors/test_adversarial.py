"""Models that break other tools: each product is quantized as written, or says why it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qgraph
from qgraph import numerics
from qgraph.formats import parse_format
from qgraph.passes import Report
from qgraph.policy import load_policy_text

FP8, INT8 = "e4m3/1x16/ue8m0-rceil", "int8/row/fp32"
EVERYTHING = load_policy_text(f"""
qgraph: 1
name: everything
rules:
  - match: {{op: [linear, conv, experts]}}
    fprop: {{input: {FP8}, weight: {INT8}}}
    dgrad: {{grad_output: {FP8}, weight: {INT8}}}
    wgrad: {{input: {FP8}, grad_output: {INT8}}}
  - match: {{op: [matmul, sdpa]}}
    fprop: {{lhs: {FP8}, rhs: {INT8}}}
    dgrad: {{grad_output: {FP8}, lhs: {INT8}, rhs: {INT8}}}
""")


@pytest.fixture(autouse=True)
def verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGRAPH_VERIFY", "1")


def fp8(x: Tensor, axis: int = -1) -> Tensor:
    return numerics.fake_quant(x.detach(), parse_format(FP8), axis)


def int8(x: Tensor, axis: int = -1) -> Tensor:
    return numerics.fake_quant(x.detach(), parse_format(INT8), axis)


def compiled(model: nn.Module, **options: Any) -> Any:
    return qgraph.compile(model, EVERYTHING, **{"codegen": False, **options})


def rows(model: nn.Module) -> Counter[tuple[str, str, str]]:
    return Counter((e.op, e.role, e.status) for e in qgraph.coverage(model).entries)


class Calls(nn.Module):
    """A function of inputs and one weight, as a module."""

    def __init__(self, function: Callable[..., Tensor], weight: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        if weight is not None:
            self.weight = nn.Parameter(weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        weight = (self.weight,) if hasattr(self, "weight") else ()
        return self.function(*inputs, *weight)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_both_operands_may_be_one_tensor() -> None:
    x, dy = randn(16, 16).requires_grad_(), randn(16, 16, seed=1)
    model = compiled(Calls(lambda x: x @ x))
    y = model(x)
    y.backward(dy)
    assert torch.equal(y, fp8(x) @ int8(x, -2))
    right, left = fp8(dy) @ int8(x.T, -2), int8(x.T) @ fp8(dy, -2)
    assert x.grad is not None
    assert torch.equal(x.grad, left + right) or torch.equal(x.grad, right + left)
    assert rows(model) == {("matmul", "fprop", "quantized"): 1, ("matmul", "dgrad", "quantized"): 2}


def test_a_weight_used_twice_is_quantized_along_the_axis_each_product_sums_over() -> None:
    x, w = randn(8, 32), randn(32, 32, seed=1)
    model = compiled(Calls(lambda x, w: F.linear(F.linear(x, w).tanh(), w.t()), w))
    y = model(x)
    hidden = (fp8(x) @ int8(w).T).tanh()
    assert torch.equal(y, fp8(hidden) @ int8(w, -2))
    y.sum().backward()
    assert rows(model)[("linear", "wgrad", "quantized")] == 2


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (lambda x, w: F.linear(x, w[:16]), lambda w: w[:16]),
        (lambda x, w: F.linear(x, w.view(16, 2, 32)[:, 1]), lambda w: w.view(16, 2, 32)[:, 1]),
        (lambda x, w: x @ w.narrow(1, 4, 16), lambda w: w.narrow(1, 4, 16).T),
        (lambda x, w: F.linear(x, w * 0.5), lambda w: w * 0.5),
        (lambda x, w: F.linear(x, w / w.amax(1, keepdim=True)), lambda w: w / w.amax(1, keepdim=True)),
    ],
    ids=["rows", "a view's rows", "columns", "scaled", "normalized"],
)  # fmt: skip
def test_a_weight_may_be_a_view_or_computed(
    function: Callable[..., Tensor], seen: Callable[[Tensor], Tensor]
) -> None:
    x, w = randn(8, 32).requires_grad_(), randn(32, 32, seed=1)
    model = compiled(Calls(function, w))
    y, used = model(x), seen(w)
    assert torch.equal(y, fp8(x) @ int8(used).T)
    dy = randn(*y.shape, seed=2)
    y.backward(dy)
    assert x.grad is not None
    assert torch.equal(x.grad, fp8(dy) @ int8(used, -2))
    assert rows(model) == {("linear", r, "quantized"): 1 for r in ("fprop", "dgrad", "wgrad")}


def test_an_empty_batch_of_every_kind_passes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(4, 16, 3), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.head(self.conv(x).mT)
            return F.scaled_dot_product_attention(x, x, x).sum()

    model = compiled(Net())
    loss = model(torch.zeros(0, 4, 12))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert {e.status for e in qgraph.coverage(model).entries} == {"quantized"}


def test_inputs_changed_in_place_are_quantized_as_they_were_when_read() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        x = x * 1
        x.add_(1)
        first, second = x @ w, x * 2
        second.relu_()
        return first + second @ w

    x, w = randn(8, 32), randn(32, 16, seed=1)
    model = compiled(Calls(function, w))
    assert torch.equal(model(x), fp8(x + 1) @ int8(w, -2) + fp8(((x + 1) * 2).relu()) @ int8(w, -2))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x[:, ::2].repeat_interleave(2, 1)[:, :32],
        lambda x: x[:1].expand(8, 32),
        lambda x: torch.cat([x, x], 1)[:, ::2],
        lambda x: x.as_strided((8, 32), (1, 8)),
    ],
    ids=["transposed", "copied", "expanded", "strided", "as_strided"],
)
def test_inputs_may_lie_in_memory_as_they_like(view: Callable[[Tensor], Tensor]) -> None:
    x, w = view(randn(8, 32)), randn(16, 32, seed=1)
    model = compiled(Calls(F.linear, w))
    y = model(x)
    y.backward(randn(8, 16, seed=2))
    assert torch.equal(y, fp8(x.contiguous()) @ int8(w).T)
    assert torch.equal(model.weight.grad, int8(randn(8, 16, seed=2).T) @ fp8(x.contiguous(), -2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_dtypes_without_a_rule_for_them_stay_and_say_so(dtype: torch.dtype) -> None:
    x, w = randn(8, 32).to(dtype), randn(16, 32, seed=1).to(dtype)
    model = compiled(Calls(F.linear, w))
    y = model(x)
    y.abs().sum().backward()
    assert torch.equal(y, x @ w.T)
    (reason,) = {e.reason for e in qgraph.coverage(model).entries}
    assert reason == f"dtype {str(dtype).removeprefix('torch.')} is not quantized"
    assert "complex" not in reason or dtype.is_complex


def test_integer_products_are_listed() -> None:
    model = compiled(Calls(lambda x: (x @ x.T).float().sum() + x.float().mean()))
    x = torch.arange(64).view(8, 8)
    assert torch.equal(model(x), (x @ x.T).float().sum() + x.float().mean())
    assert [(e.status, e.reason) for e in qgraph.coverage(model).entries] == [
        ("unsupported", "dtype int64 is not quantized")
    ]


HIDDEN: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "mv": (lambda x, w: w @ x, (32,)),
    "dot": (lambda x, w: torch.dot(x, w[0]), (32,)),
    "outer": (lambda x, w: torch.outer(x, w[0]), (32,)),
    "addmv": (lambda x, w: torch.addmv(x, w, x), (32,)),
    "addbmm": (lambda x, w: torch.addbmm(w, x, x), (2, 32, 32)),
    "bilinear": (lambda x, w: F.bilinear(x, x, w.view(1, 32, 32)), (4, 32)),
    "einsum": (lambda x, w: torch.einsum("bi,ij,bj->b", x, w, x), (4, 32)),
    "kron": (lambda x, w: torch.kron(x, w[:2, :2]), (4, 32)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), (4, 32)),
    "chain": (lambda x, w: torch.linalg.multi_dot([x, w, w]), (4, 32)),
    "broadcast": (lambda x, w: x.view(2, 1, 2, 32) @ w.expand(3, 32, 32), (4, 32)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_products_by_other_names_are_seen(name: str) -> None:
    function, shape = HIDDEN[name]
    x, w = randn(*shape).requires_grad_(), randn(32, 32, seed=1)
    model = compiled(Calls(function, w))
    y = model(x)
    y.sum().backward()
    assert bool(y.isfinite().all())
    entries = qgraph.coverage(model).entries
    assert bool(entries) == (name not in ("outer", "kron"))  # nothing is summed
    assert all(e.status == "quantized" or e.reason for e in entries)
    quantized = name in ("einsum", "tensordot", "chain", "broadcast")
    assert any(e.status == "quantized" and e.role == "fprop" for e in entries) == quantized
    assert torch.equal(y, function(x.detach(), w)) != quantized


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "circular": lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(16, 16, 3, padding="same"),
    "even same": lambda: nn.Conv2d(16, 16, 4, padding="same"),
    "no batch": lambda: nn.Sequential(nn.Flatten(0, 0), nn.Conv2d(16, 16, 3)),
    "normed": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 16, 3)),
    "channels last": lambda: nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "half": lambda: nn.Conv2d(16, 16, 3).bfloat16(),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_sort_train(name: str) -> None:
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]()
    x = randn(2, 16, 8, 8).to(next(layer.parameters()).dtype)
    x = x[0] if name == "no batch" else x
    with torch.no_grad():
        layer.train(name != "spectral")  # its power iteration moves on in training
        plain = layer(x)
    model = compiled(layer)
    y = model(x.requires_grad_())
    y.float().square().sum().backward()
    report = qgraph.coverage(model)
    roles = {(e.role, e.status) for e in report.entries if e.op == "conv"}
    assert roles == {(role, "quantized") for role in ("fprop", "dgrad", "wgrad")}
    assert 0 < float((y - plain).norm() / plain.norm()) < 0.1
    gradients = [p.grad for p in layer.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in gradients)


def test_a_module_called_twice_has_a_row_for_each_call() -> None:
    layer = nn.Linear(32, 32, bias=False)
    model = compiled(nn.Sequential(layer, nn.Tanh(), layer))
    x = randn(8, 32)
    y = model(x)
    y.sum().backward()
    w = layer.weight
    assert torch.equal(y, fp8((fp8(x) @ int8(w).T).tanh()) @ int8(w).T)
    assert rows(model)[("linear", "fprop", "quantized")] == 2
    assert rows(model)[("linear", "wgrad", "quantized")] == 2


def test_several_losses_and_a_graph_kept_for_later() -> None:
    model = compiled(Calls(lambda x, w: F.linear(x, w).tanh(), randn(16, 32)))
    y = model(randn(8, 32))
    first, second = y.sum(), y.square().sum()
    first.backward(retain_graph=True)
    alone = model.weight.grad.clone()
    second.backward(retain_graph=True)
    assert not torch.equal(model.weight.grad, alone)
    model.weight.grad = None
    (one,) = torch.autograd.grad(first, model.weight, retain_graph=True)
    assert torch.equal(one, alone)


def test_embeddings_are_lookups_and_no_products() -> None:
    embedding = nn.Embedding(16, 32)
    model = compiled(nn.Sequential(embedding, nn.Linear(32, 8)))
    model(torch.arange(4)).sum().backward()
    report: Report = qgraph.coverage(model)
    assert {e.module for e in report.entries} == {"1"}
    assert not report.not_captured
