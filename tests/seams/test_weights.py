"""Weights that are computed: rules on weights reach them, and what they are computed with stays high."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import qgraph
from qgraph.errors import QGraphWarning
from qgraph.policy import load_policy_text

POLICY = load_policy_text(
    """
qgraph: 1
name: weights
rules:
  - match: {op: [linear, experts, conv]}
    fprop: {input: mxfp8, weight: e4m3/8x8/ue8m0-rceil}
    dgrad: {grad_output: mxfp8, weight: e4m3/8x8/ue8m0-rceil}
    wgrad: {grad_output: mxfp8, input: mxfp8}
  - match: {op: matmul}
    fprop: {lhs: mxfp8, rhs: mxfp8}
    dgrad: {grad_output: mxfp8, lhs: mxfp8, rhs: mxfp8}
""",
    "weights",
)
HIGH = "it makes a weight: what a weight is computed with stays high"


class Computed(nn.Module):
    """A linear layer whose weight `make` computes from its own parameters and buffers."""

    def __init__(
        self, make: Callable[[Any], Tensor], *parameters: Tensor, **buffers: Tensor
    ) -> None:
        super().__init__()
        self.make = make
        self.p = nn.ParameterList(map(nn.Parameter, parameters))
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.make(self))


class LowRank(nn.Module):
    """A parametrization: w + b a."""

    def __init__(self, out: int, features: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, features)), nn.Parameter(torch.randn(out, 4))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.b @ self.a


class Turned(nn.Module):
    """A parametrization by another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(32, 32, bias=False)

    def forward(self, w: Tensor) -> Tensor:
        return self.turn(w)  # type: ignore[no-any-return]


def parametrized(part: nn.Module) -> nn.Module:
    layer = nn.Linear(32, 48, bias=False)
    parametrize.register_parametrization(layer, "weight", part)
    return layer


class Adapted(nn.Module):
    """An update of low rank, by calling a layer on the other's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a = nn.Linear(32, 48, bias=False), nn.Linear(32, 4, bias=False)
        self.b = nn.Linear(4, 48, bias=False)

    def weight(self) -> Tensor:
        return self.base.weight + self.b(self.a.weight.mT).mT  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight())


class Generated(nn.Module):
    """A hypernetwork: two layers compute the weight from learned numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(r(1, 8))
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 48 * 32))

    def weight(self) -> Tensor:
        return self.layers(self.numbers).view(48, 32)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight())


def pruned() -> nn.Module:
    layer = nn.Linear(32, 48, bias=False)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def r(*shape: int) -> Tensor:
    return torch.randn(shape) / 4


# A layer, and how many products make its weight.
LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a mask in a buffer": (
        lambda: Computed(lambda m: m.p[0] * m.mask, r(48, 32), mask=r(48, 32).gt(0).float()), 0,
    ),
    "pruned": (pruned, 0),
    "a low rank": (lambda: Computed(lambda m: m.p[1] @ m.p[0], r(4, 32), r(48, 4)), 1),
    "a low-rank update": (
        lambda: Computed(lambda m: m.p[0] + 2 * (m.p[2] @ m.p[1]), r(48, 32), r(4, 32), r(48, 4)), 1,
    ),
    "an update of a frozen buffer": (
        lambda: Computed(lambda m: m.w + (m.p[1] * 2) @ m.p[0], r(4, 32), r(48, 4), w=r(48, 32)), 1,
    ),
    "a chain": (lambda: Computed(lambda m: m.p[2] @ m.p[1].tanh() @ m.p[0], r(4, 32), r(4, 4), r(48, 4)), 2),
    "a transposed one": (lambda: Computed(lambda m: (m.p[0] @ m.p[1]).mT, r(32, 4), r(4, 48)), 1),
    "parametrized": (lambda: parametrized(LowRank(48, 32)), 1),
    "parametrized by a layer": (lambda: parametrized(Turned()), 1),
    "adapted by layers": (Adapted, 1),
    "a hypernetwork": (Generated, 2),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(32, 48, bias=False)), 0),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(32, 48, bias=False)), 0),
    "a buffer": (lambda: Computed(lambda m: m.w, w=r(48, 32)), 0),
    "codes and scales in buffers": (
        lambda: Computed(lambda m: m.q.float() * m.s, q=torch.randint(-8, 8, (48, 32)).char(), s=r(48, 1)), 0,
    ),
    "stored in bf16": (lambda: Computed(lambda m: m.p[0].float() * 2, r(48, 32).bfloat16()), 0),
    "stored as bits": (
        lambda: Computed(
            lambda m: m.w.view(torch.bfloat16).float(), w=r(48, 32).bfloat16().view(torch.int16)
        ), 0,
    ),
}  # fmt: skip


def step(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(16, 32, requires_grad=True)
    y = call(x)
    y.backward(torch.randn(y.shape))
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("name", LAYERS)
def test_a_computed_weight_is_multiplied_as_a_stored_one(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, products = LAYERS[name]
    layer = make().eval()  # spectral norm turns its vectors in training alone
    weight = _weight(layer)
    plain = nn.Linear(32, 48, bias=False)
    plain.weight = nn.Parameter(weight.detach().clone().contiguous())
    got = step(qgraph.compile(layer, POLICY, codegen=False))
    want = step(qgraph.compile(plain, POLICY, codegen=False))
    assert all(map(torch.equal, got, want))
    own = [p for p in layer.parameters() if p.requires_grad]
    if weight.requires_grad:
        wanted = torch.autograd.grad(weight, own, plain.weight.grad)
        for parameter, gradient in zip(own, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_bound(plain, own))
    found = Counter(
        (e.op, e.role, *sorted(e.operand_kinds)) for e in qgraph.coverage(layer).quantized
    )
    roles = {("linear", "fprop", "input", "weight"), ("linear", "dgrad", "grad_output", "weight")}
    roles |= {("linear", "wgrad", "grad_output", "input")} if own else set()
    assert found == dict.fromkeys(roles, 1)
    high = [
        e.reason for e in qgraph.coverage(layer).entries if e.reason and "vector" not in e.reason
    ]
    assert high == [HIGH] * 3 * products


def _bound(plain: nn.Linear, own: list[nn.Parameter]) -> float:
    """The most two orders of summing may differ by: twice at most 48 products with at most two numbers."""
    assert plain.weight.grad is not None
    most = max(1.0, *(p.detach().abs().max().item() for p in own))
    return 2 * 48 * 2.0**-24 * 48 * plain.weight.grad.abs().max().item() * most**2


def _weight(layer: nn.Module) -> Tensor:
    """Return the weight that the layer computes."""
    if isinstance(layer, Computed):
        return layer.make(layer)
    if isinstance(layer, (Generated, Adapted)):
        return layer.weight()
    layer(torch.zeros(1, 32))  # hooks compute it
    return layer.weight  # type: ignore[return-value]


def kinds(model: nn.Module, *inputs: Tensor) -> set[tuple[str, tuple[str, ...], str]]:
    """Return op, operands and status of the products of the forward."""
    torch._dynamo.reset()
    qgraph.compile(model, POLICY, codegen=False)
    model(*inputs).sum().backward()
    entries = qgraph.coverage(model).entries
    assert {e.reason for e in entries} <= {"", HIGH}
    return {(e.op, e.operand_kinds, e.status) for e in entries if e.role == "fprop"}


MAKER = ("matmul", ("lhs", "rhs"), "unsupported")


def test_experts_and_convolutions_with_updates_of_low_rank() -> None:
    class Experts(nn.Module):
        def __init__(self, *, picked: bool) -> None:
            super().__init__()
            self.w, self.picked = nn.Parameter(r(4, 32, 16)), picked
            self.a, self.b = nn.Parameter(r(4, 32, 4)), nn.Parameter(r(4, 4, 16))

        def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
            w = self.w + self.a @ self.b
            return torch.bmm(x, w[numbers] if self.picked else w)

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(r(4, 16)), nn.Parameter(r(24, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, (self.b @ self.a)[..., None])

    for picked in (False, True):
        found = kinds(Experts(picked=picked), torch.randn(4, 8, 32), torch.tensor([1, 1, 0, 3]))
        assert found == {MAKER, ("experts", ("input", "weight"), "quantized")}
    found = kinds(Convolution(), torch.randn(2, 16, 8))
    assert found == {MAKER, ("conv", ("input", "weight"), "quantized")}


def test_what_only_looks_like_a_computed_weight() -> None:
    class Positions(nn.Module):
        """Learned places, projected by a layer and multiplied with data; a buffer that is written."""

        def __init__(self) -> None:
            super().__init__()
            self.places, self.project = nn.Parameter(r(16, 32)), nn.Linear(32, 32)
            self.register_buffer("seen", r(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = x @ self.project(self.places.tanh()).mT
            scores = scores + (x @ self.seen.clone()).mean()  # type: ignore[operator]
            self.seen.mul_(0.5)  # type: ignore[operator]
            return scores

    linear, product = (
        ("linear", ("input", "weight"), "quantized"),
        ("matmul", ("lhs", "rhs"), "quantized"),
    )
    assert kinds(Positions(), torch.randn(8, 32)) == {linear, product}

    class Seen(nn.Module):
        """Keys and values in buffers: attention over what was seen before."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", r(2, 8, 32))
            self.register_buffer("values", r(2, 8, 32))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = (x @ self.keys.mT).softmax(-1) @ self.values  # type: ignore[operator]
            return found

    torch._dynamo.reset()
    seen = qgraph.compile(Seen(), POLICY, codegen=False)
    with pytest.warns(QGraphWarning, match="nothing is quantized so far"):
        seen(torch.randn(2, 16, 32, requires_grad=True)).sum().backward()
    ops = [(e.op, e.operand_kinds) for e in qgraph.coverage(seen).entries if e.role == "fprop"]
    assert ops == [("qk", ("lhs", "rhs")), ("pv", ("lhs", "rhs"))]

    class Attention(nn.Module):
        """Learned queries, multiplied by a plain parameter: scores are attention's."""

        def __init__(self) -> None:
            super().__init__()
            self.queries, self.w = nn.Parameter(r(2, 8, 32)), nn.Parameter(r(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            q = (self.queries * 2) @ self.w
            found: Tensor = (q @ x.mT).softmax(-1) @ x
            return found

    torch._dynamo.reset()
    model = qgraph.compile(Attention(), POLICY, codegen=False)
    model(torch.randn(2, 16, 32)).sum().backward()
    assert [(e.op, e.status) for e in qgraph.coverage(model).entries if e.role == "fprop"] == [
        ("linear", "quantized"), ("qk", "unmatched"), ("pv", "unmatched"),
    ]  # fmt: skip
