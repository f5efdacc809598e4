"""Convolutions, experts and attention against the same steps written out in eager torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

import qgraph
from qgraph import numerics
from qgraph.formats import parse_format
from qgraph.policy import Policy, load_policy_text

FPROP, DGRAD, WGRAD = "e4m3/1x16/ue8m0-rceil", "e5m2/1x8/ue8m0-rceil", "int8/1x4/fp32"
TILE = "e4m3/8x8/ue8m0-rceil"


def policy(op: str, body: str) -> Policy:
    return load_policy_text(
        f"qgraph: 1\nname: test\nrules:\n  - match: {{op: {op}}}\n{body}", "test.yaml"
    )


WEIGHTED = f"""
    fprop: {{input: {FPROP}, weight: {TILE}}}
    dgrad: {{grad_output: {DGRAD}, weight: {TILE}}}
    wgrad: {{input: {WGRAD}, grad_output: {WGRAD}}}
"""


def along(x: Tensor, axis: int, text: str, layout: tuple[int, ...] = ()) -> Tensor:
    """Quantize `x` in blocks along `axis`, the axes brought into `layout` first."""
    order = layout or tuple(range(x.dim()))
    rows = x.permute(order).contiguous()
    found = numerics.fake_quant(rows, parse_format(text), order.index(axis) - x.dim())
    return found.permute([order.index(i) for i in range(x.dim())]).contiguous()


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y).sin()).sum().backward()
    grads = [x.grad, *(p.grad for p in model.parameters())]
    assert all(grad is not None for grad in grads)
    return y.detach(), [grad.clone() for grad in grads if grad is not None]


class _Convolution(torch.autograd.Function):
    """A convolution whose three products read quantized operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings, ctx.bias = settings, bias is not None
        transposed = settings[3]
        return torch.convolution(_input(x), _weight(w, 0 if transposed else 1), bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w = ctx.saved_tensors
        transposed, (dy,) = ctx.settings[3], grads
        back = torch.ops.aten.convolution_backward
        last = (*range(2, x.dim()), 1, 0)
        bias = [dy.shape[1]]
        dx = back(
            along(dy, 1, DGRAD, (0, *range(2, x.dim()), 1)), x, _weight(w, 1 if transposed else 0),
            bias, *ctx.settings, [True, False, False],
        )[0]  # fmt: skip
        dw = back(
            along(dy, 0, WGRAD, last), along(x, 0, WGRAD, last), w, bias, *ctx.settings,
            [False, True, False],
        )[1]  # fmt: skip
        return dx, dw, dy.sum([0, *range(2, x.dim())]) if ctx.bias else None, None


def _input(x: Tensor) -> Tensor:
    return along(x, 1, FPROP, (0, *range(2, x.dim()), 1))


def _weight(w: Tensor, axis: int) -> Tensor:
    return along(w, axis, TILE, (*range(2, w.dim()), 0, 1))


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(16, 24, 3), (4, 16, 12)),
    "2d": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (4, 16, 9, 7)),
    "3d": (lambda: nn.Conv3d(8, 16, 2), (2, 8, 4, 5, 3)),
    "dilated": (lambda: nn.Conv2d(16, 16, 3, dilation=2, bias=False), (4, 16, 8, 8)),
    "grouped": (lambda: nn.Conv2d(32, 64, 3, groups=2), (4, 32, 6, 6)),
    "ragged": (lambda: nn.Conv2d(5, 7, 3), (3, 5, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(16, 24, 3, stride=2), (4, 16, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(32, 64, 3, groups=2), (4, 32, 6)),
    "one by one": (lambda: nn.Conv2d(16, 16, 1), (4, 16, 5, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_an_eager_one_bitwise(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, x = make(), torch.randn(shape)
    found = qgraph.compile(layer, policy("conv", WEIGHTED), codegen=False)
    y, grads = gradients(found, x)
    assert {e.status for e in qgraph.coverage(found).entries} == {"quantized"}
    c: Any = layer
    transposed = isinstance(c, nn.modules.conv._ConvTransposeNd)
    padding = list(c.output_padding)
    settings = (c.stride, c.padding, c.dilation, transposed, padding, c.groups)

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return _Convolution.apply(x, c.weight, c.bias, settings)  # type: ignore[no-any-return,no-untyped-call]

    want, wanted = gradients(Reference(), x)
    assert torch.equal(y, want)
    for got, expected in zip(grads, wanted, strict=True):
        assert torch.equal(got, expected)


def test_a_scale_a_row_of_wgrad_is_one_a_channel() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 16, 3, bias=False), torch.randn(1, 8, 6, 6)
    body = "    wgrad: {input: int8/row/fp32, grad_output: int8/row/fp32}\n"
    found = qgraph.compile(layer, policy("conv", body), codegen=False)
    dy = torch.randn(1, 16, 4, 4)
    found(x).backward(dy)

    def by_channel(v: Tensor) -> Tensor:
        rows = v.permute(1, 2, 3, 0).reshape(v.shape[1], -1)
        quantized = numerics.fake_quant(rows, parse_format("int8/row/fp32"), -1)
        assert not torch.equal(quantized, rows)
        return quantized.view(v.shape[1], *v.shape[2:], 1).permute(3, 0, 1, 2).contiguous()

    want = conv2d_weight(by_channel(x), layer.weight.shape, by_channel(dy))
    assert torch.equal(layer.weight.grad, want)  # type: ignore[arg-type]


def test_blocks_that_cross_groups_are_not_quantized_and_say_so() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv1d(16, 16, 3, groups=2), nn.Conv1d(16, 16, 3, groups=16))
    qgraph.compile(model, policy("conv", WEIGHTED.replace("8x8", "1x16")), codegen=False)
    model(torch.randn(4, 16, 12, requires_grad=True)).sum().backward()
    entries = qgraph.coverage(model).entries
    assert Counter((e.module, e.role, e.reason.split(":")[0]) for e in entries if e.reason) == {
        ("0", "fprop", "blocks of 16 would cross the convolution's groups of 8 channels"): 1,
        ("0", "dgrad", "blocks of 16 would cross the convolution's groups of 8 channels"): 1,
        ("1", "fprop", "a depthwise convolution sums over the taps of its kernel only"): 1,
        ("1", "dgrad", "a depthwise convolution sums over the taps of its kernel only"): 1,
    }


class Experts(nn.Module):
    """Four experts, rows sorted by expert, as transformers' grouped experts compute them."""

    def __init__(self, ends: list[int], features: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 24, features))
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        from transformers.integrations.moe import _grouped_mm

        return _grouped_mm(x, self.weight.transpose(-2, -1), self.ends)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [[5, 5, 21, 40], [0, 16, 32, 40], [10, 20, 30, 37]], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["straight", "rotated"])
def test_experts_equal_a_loop_over_experts(ends: list[int], turned: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Experts(ends), torch.randn(40, 32)
    formats = (FPROP, "e4m3/1x8/ue8m0-rceil", DGRAD, "e4m3/1x8/ue8m0-rceil", WGRAD)
    wgrad = WGRAD if not turned else f"{{format: {WGRAD}, transform: rht}}"
    body = WEIGHTED.replace(TILE, formats[1]).replace(
        f"wgrad: {{input: {WGRAD}, grad_output: {WGRAD}}}",
        f"wgrad: {{input: {wgrad}, grad_output: {wgrad}}}",
    )
    chosen = policy("experts", body + "transforms:\n  rht: {hadamard: 16, signs: te}\n")
    y, (dx, dw) = gradients(qgraph.compile(model, chosen, codegen=False), x)
    entries = qgraph.coverage(model).entries
    assert {(e.op, e.role, e.status) for e in entries} == {
        ("experts", role, "quantized") for role in ("fprop", "dgrad", "wgrad")
    }
    dy = torch.linspace(-1, 1, y.numel()).view_as(y).sin()

    def summed(v: Tensor) -> Tensor:  # along the rows of one expert
        if turned:
            v = numerics.hadamard(v, numerics.TE_SIGNS, 0 - v.dim(), "bf16")
        return along(v, 0, WGRAD)

    start = 0
    for expert, end in enumerate(ends):
        rows, w = slice(start, end), model.weight.detach()[expert]
        start = end
        if rows.start == rows.stop:
            assert not dw[expert].any()
            continue
        want = along(x[rows], 1, FPROP) @ along(w, 1, formats[1]).T
        torch.testing.assert_close(y[rows], want, rtol=0, atol=_bound(x[rows], w.T))
        want = along(dy[rows], 1, DGRAD) @ along(w, 0, formats[3])
        torch.testing.assert_close(dx[rows], want, rtol=0, atol=_bound(dy[rows], w))
        want = summed(dy[rows]).T @ summed(x[rows])
        torch.testing.assert_close(dw[expert], want, rtol=0, atol=_bound(dy[rows].T, x[rows]))
        assert not torch.allclose(want, dy[rows].T @ x[rows], rtol=0, atol=1e-4)
    assert not y[ends[-1] :].any()


def _bound(a: Tensor, b: Tensor) -> float:
    """The most two orders of summing a product may differ by, with room for rounded operands."""
    most = (a.abs() @ b.abs()).max().item()
    return 2 * a.shape[-1] * 2.0**-24 * 1.2 * most


class Attention(nn.Module):
    """Self-attention, fused or written out."""

    def __init__(self, *, fused: bool, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.fused, self.heads, self.groups = fused, heads, groups
        self.qkv = nn.Linear(64, 16 * (heads + 2 * groups), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (-1, 16)).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.groups, self.groups], 1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        scores = (q / 2) @ (k / 2).mT  # 1 / sqrt(16), half from each
        out: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        return out


ATTENTION = """
    fprop: {lhs: F, rhs: F}
    dgrad: {grad_output: F, lhs: F, rhs: F}
"""


@contextlib.contextmanager
def quantized_matmuls(text: str) -> Iterator[None]:
    """Make torch.matmul quantize the operands of each product and of its gradients."""
    plain = torch.matmul

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return plain(fq(a, 3), fq(b, 2))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            a, b = ctx.saved_tensors
            (dy,) = grads
            return plain(fq(dy, 3), fq(b, 3).mT), plain(fq(a, 2).mT, fq(dy, 2))

    def fq(v: Tensor, axis: int) -> Tensor:
        return along(v, axis, text)

    with pytest.MonkeyPatch.context() as patch:
        product: Any = Product.apply
        patch.setattr(Tensor, "__matmul__", lambda a, b: product(a, b))
        yield


@pytest.mark.parametrize(
    "text",
    ["e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e4m3/tensor/fp32", "int8/row/fp32"],
)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
def test_attention_equals_its_products_quantized_one_by_one(fused: bool, text: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Attention(fused=fused), torch.randn(2, 32, 64)
    high, plain = gradients(model, x)
    eager = Attention(fused=False)
    eager.load_state_dict(model.state_dict())
    with quantized_matmuls(text):
        want, wanted = gradients(eager, x)
    chosen = policy("sdpa", ATTENTION.replace("F", text))
    y, grads = gradients(qgraph.compile(model, chosen, codegen=False), x)
    ops = Counter(
        (e.op, e.role, e.status) for e in qgraph.coverage(model).entries if e.op != "linear"
    )
    assert ops == {
        ("qk", "fprop", "quantized"): 1, ("qk", "dgrad", "quantized"): 2,
        ("pv", "fprop", "quantized"): 1, ("pv", "dgrad", "quantized"): 2,
    }  # fmt: skip
    # The softmaxes differ in the last bit, so a number on the edge of two codes may take either:
    # what is left between the two must be small beside what quantization did.
    for got, expected, before in zip([y, *grads], [want, *wanted], [high, *plain], strict=True):
        done = (expected - before).norm()
        assert done > 1e-3 * before.norm()
        assert (got - expected).norm() < 0.1 * done


def test_attention_no_rule_quantizes_stays_fused() -> None:
    torch._dynamo.reset()
    two = nn.Sequential(nn.Linear(64, 64), Attention(fused=True))
    chosen = policy("linear", WEIGHTED)
    qgraph.compile(two, chosen, codegen=False)
    two(torch.randn(2, 32, 64)).sum().backward()
    fused = {e.reason for e in qgraph.coverage(two).entries if e.op == "sdpa"}
    assert fused == {"fused attention: a rule on qk or pv would take it apart"}


def test_one_product_of_attention_alone() -> None:
    torch._dynamo.reset()
    model = Attention(fused=True)
    rule = policy("pv", "    fprop: {lhs: mxfp8, rhs: mxfp8}\n")
    qgraph.compile(model, rule, codegen=False)
    model(torch.randn(2, 32, 64)).sum().backward()
    done = {(e.op, e.role) for e in qgraph.coverage(model).entries if e.status == "quantized"}
    assert done == {("pv", "fprop")}


def test_dropout_of_attention_is_kept() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, q: Tensor) -> Tensor:
            ones = torch.ones_like(q) * self.scale
            return F.scaled_dot_product_attention(q * 0, q, ones, dropout_p=0.5)

    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Dropped()
    qgraph.compile(model, policy("sdpa", ATTENTION.replace("F", "e4m3/tensor/fp32")), codegen=False)
    y = model(torch.randn(2, 2, 64, 16)).detach()
    # 64 weights of 1/64, each dropped or doubled: sums of 64 draws of 0 or 2, over 64.
    assert abs(y.mean().item() - 1) < 5 / (2 * 2 * 64 * 64) ** 0.5
    assert 0.5 / 8 < y[..., 0].std().item() < 2 / 8


@pytest.mark.parametrize("written", ["bmm", "einsum", "gathered"])
def test_stacked_weights_are_experts_however_they_are_multiplied(written: str) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 32, 16))

        def forward(self, x: Tensor) -> Tensor:
            if written == "bmm":
                return torch.bmm(x, self.weight)
            if written == "einsum":
                return torch.einsum("etk,ekn->etn", x, self.weight)
            return torch.bmm(x, self.weight[torch.tensor([0, 2, 2, 3])])

    torch._dynamo.reset()
    model = Stacked()
    body = WEIGHTED.replace(TILE, FPROP)
    qgraph.compile(model, policy("experts", body), codegen=False)
    model(torch.randn(4, 8, 32, requires_grad=True)).sum().backward()
    entries = qgraph.coverage(model).entries
    assert {(e.op, e.role, frozenset(e.operand_kinds), e.status) for e in entries} == {
        ("experts", "fprop", frozenset({"input", "weight"}), "quantized"),
        ("experts", "dgrad", frozenset({"grad_output", "weight"}), "quantized"),
        ("experts", "wgrad", frozenset({"grad_output", "input"}), "quantized"),
    }
