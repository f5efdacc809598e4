"""Blocks lie where the mathematics says, in whatever layout a product's operands come.

Each draw is a product of two matrices, or stacks of them, that lie permuted, sliced, expanded or in parts of
an axis. Its values and both gradients must be those of an eager product whose operands are quantized as
matrices. All numbers are small multiples of powers of two, so that every sum is exact in whatever order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_mm

import qgraph
from qgraph import numerics
from qgraph.formats import parse_format
from qgraph.passes.graph import edit
from qgraph.policy import Policy, load_policy_text

SCALE = "ue8m0-rceil"
# One block a place, so that each would be missed: rows, square and other tiles.
LEFT, RIGHT, GRAD = f"e2m1/1x16/{SCALE}", f"e2m1/8x8/{SCALE}", f"e2m1/4x16/{SCALE}"
OTHER = f"e2m1/row/{SCALE}"
BLOCKS = load_policy_text(
    f"""
qgraph: 1
name: blocks
rules:
  - match: {{op: [linear, experts]}}
    fprop: {{input: {LEFT}, weight: {RIGHT}}}
    dgrad: {{grad_output: {GRAD}, weight: {RIGHT}}}
    wgrad: {{grad_output: {GRAD}, input: {OTHER}}}
  - match: {{op: matmul}}
    fprop: {{lhs: {LEFT}, rhs: {RIGHT}}}
    dgrad: {{grad_output: {GRAD}, lhs: {OTHER}, rhs: {RIGHT}}}
""",
    "blocks",
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a stack of matrices [..., rows, columns] lies in memory: what `show` makes of it."""

    sizes: tuple[int, ...]  # one batch axis or two, rows, columns
    order: tuple[int, ...]  # of the axes in memory
    expanded: tuple[int, ...]  # batch axes that are not there in memory
    cut: int | None  # the axis of which only a slice is taken
    early: bool  # it is taken before the axes are ordered
    role: str  # input or weight

    def make(self, draw: random.Random) -> Tensor:
        generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
        shape = [1 if axis in self.expanded else size for axis, size in enumerate(self.sizes)]
        if self.cut is not None:
            shape[self.cut] += 2
        numbers = torch.randint(-7, 8, shape, generator=generator).float()
        # Matrices of a stack, and parts of one, of sizes of their own: who shares a scale shows.
        parts = [*shape[:-2], -(-shape[-2] // 4), -(-shape[-1] // 4)]
        powers = torch.randint(0, 4, parts, generator=generator)
        powers = powers.repeat_interleave(4, -2)[..., : shape[-2], :].repeat_interleave(4, -1)
        return (numbers * 2.0 ** powers[..., : shape[-1]]).permute(self.order).contiguous()

    def show(self, x: Tensor) -> Tensor:
        if self.cut is not None and self.early:
            x = x.narrow(self.order.index(self.cut), 1, self.sizes[self.cut])
        if self.order != tuple(range(len(self.order))):
            x = x.permute([self.order.index(axis) for axis in range(len(self.order))])
        if self.cut is not None and not self.early:
            x = x.narrow(self.cut, 1, self.sizes[self.cut])
        return x.expand(self.sizes) if self.expanded else x


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One product: how its operands lie, and what multiplies them."""

    left: Stored
    right: Stored
    how: str

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = self.left.show(x), self.right.show(y)
        if self.how == "bmm":
            if left.dim() == 3:
                return torch.bmm(left, right)
            found = torch.bmm(left.flatten(0, 1), right.flatten(0, 1))
            return found.view(*left.shape[:2], *found.shape[1:])
        if self.how == "baddbmm" and left.dim() == 3:
            return torch.baddbmm(left.new_zeros(1), left, right)
        if self.how == "turned":  # the same product, each operand in the place of the other
            return (right.mT @ left.mT).mT
        if self.how == "linear":
            return torch.nn.functional.linear(left, right.flatten(0, -3)[0].mT)
        if self.how == "einsum":
            names = ("amk", "akn") if left.dim() == 3 else ("abmk", "abkn")
            sides = zip(names, (self.left, self.right), (left, right), strict=True)
            words, laid = zip(
                *(("".join(n[i] for i in s.order), x.permute(s.order)) for n, s, x in sides),
                strict=True,
            )
            return torch.einsum(f"{','.join(words)}->{names[0][:-1]}n", *laid)
        product: Tensor = left @ right
        return product


HOWS = ("bmm", "matmul", "einsum", "turned", "linear", "baddbmm")


def draws(count: int, seed: int) -> list[Draw]:
    draw = random.Random(seed)
    found = []
    for number in range(count):
        how = HOWS[number % len(HOWS)]
        batch = tuple(draw.choice((1, 2, 3)) for _ in range(draw.choice((1, 1, 2))))
        m, n, k = draw.sample((8, 16, 20, 24, 40), 3)
        roles = draw.choice((("input", "weight"), ("weight", "input"), ("input", "input")))
        roles = ("input", "weight") if how == "linear" else roles
        sides = []
        for sizes, role in zip(((*batch, m, k), (*batch, k, n)), roles, strict=True):
            rank, axes = len(sizes), range(len(batch))
            one = how == "linear" and role == "weight"
            expanded = tuple(axes) if one else tuple(draw.sample(axes, draw.choice((0, 0, 1))))
            cut = draw.choice((None, *(axis for axis in range(rank) if axis not in expanded)))
            order = tuple(draw.sample(range(rank), rank))
            early = draw.random() < 0.5
            sides.append(
                Stored(sizes=sizes, order=order, expanded=expanded, cut=cut, early=early, role=role)
            )
        found.append(Draw(left=sides[0], right=sides[1], how=how))
    return found


class Quantized(torch.autograd.Function):
    """left @ right, and both gradients, of operands quantized as matrices; `formats` by place."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, formats: dict[str, str]) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.formats = formats
        return along(left, -1, formats["left"]) @ along(right, -2, formats["right"])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (left, right), formats, (dy,) = ctx.saved_tensors, ctx.formats, grads
        back = along(dy, -1, GRAD) @ along(right, -1, formats["right again"]).mT
        return back, along(left, -2, formats["left again"]).mT @ along(dy, -2, GRAD), None


def along(x: Tensor, axis: int, text: str) -> Tensor:
    return numerics.fake_quant(x.contiguous(), parse_format(text), axis)


def formats_of(draw: Draw) -> dict[str, str]:
    """Return the format of each place of left @ right, as BLOCKS gives them."""
    places = dict.fromkeys(("input", "lhs"), (LEFT, OTHER)) | dict.fromkeys(
        ("weight", "rhs"), (RIGHT, RIGHT)
    )
    kinds = [draw.left.role, draw.right.role]
    if kinds == ["input", "input"]:
        kinds = ["rhs", "lhs"] if draw.how == "turned" else ["lhs", "rhs"]
    (left, left_again), (right, right_again) = (places[kind] for kind in kinds)
    return {"left": left, "left again": left_again, "right": right, "right again": right_again}


class Products(nn.Module):
    """All products of some draws, each of operands of its own."""

    def __init__(self, found: list[Draw], seed: int, multiply: Callable[..., Tensor]) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.found, self.multiply = found, multiply
        self.inputs: list[Tensor] = []
        self.weights = nn.ParameterList()
        for one in found:
            for side in (one.left, one.right):
                made = side.make(draw)
                if side.role == "weight":
                    self.weights.append(nn.Parameter(made))
                else:
                    self.inputs.append(made.requires_grad_())

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = {"input": iter(inputs), "weight": iter(self.weights)}
        return [
            self.multiply(one, *(next(given[side.role]) for side in (one.left, one.right)))
            for one in self.found
        ]


def oracle(draw: Draw, x: Tensor, y: Tensor) -> Tensor:
    function: Any = Quantized
    left, right = draw.left.show(x), draw.right.show(y)
    shape = left.shape[:-1]
    if draw.how == "linear":  # the rows of all are those of one matrix
        left, right = left.flatten(0, -2), right.flatten(0, -3)[0]
    found: Tensor = function.apply(left, right, formats_of(draw))
    return found.view(*shape, -1)


def step(model: Products) -> list[tuple[Tensor, ...]]:
    """Return for each draw its result and the gradients of its operands."""
    results = model(*model.inputs)
    generator = torch.Generator().manual_seed(1)
    wanted = [torch.randint(-7, 8, result.shape, generator=generator).float() for result in results]
    torch.autograd.backward(results, wanted)
    grads = {"input": iter(model.inputs), "weight": iter(model.weights)}
    return [
        (result.detach(), *(next(grads[side.role]).grad for side in (one.left, one.right)))
        for one, result in zip(model.found, results, strict=True)
    ]


def check(count: int, seed: int) -> None:
    torch._dynamo.reset()
    found = draws(count, seed)
    model = Products(found, seed, Draw.multiply)
    qgraph.compile(model, BLOCKS, codegen=False)
    got, want = step(model), step(Products(found, seed, oracle))
    high = step(Products(found, seed, Draw.multiply))
    entries = qgraph.coverage(model).entries
    assert {entry.status for entry in entries} == {"quantized"}
    assert len(entries) == 3 * count
    for draw, ours, theirs, plain in zip(found, got, want, high, strict=True):
        for name, one, two, three in zip(
            ("result", "left", "right"), ours, theirs, plain, strict=True
        ):
            assert torch.equal(one, two), f"{name} of {draw}"
            assert not torch.equal(one, three), f"{name} of {draw} is not quantized"


@pytest.mark.only_full
@pytest.mark.parametrize("seed", range(1, 9))
def test_more_draws(seed: int) -> None:
    check(60, seed)


def test_values_and_gradients_are_those_of_quantized_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QGRAPH_VERIFY", "1")
    check(24, 0)


BREAKS = {
    "the axes it finds": None,
    "the values it finds": "qgraph.passes.watch.verify._check_axes",
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_tile_over_two_matrices_is_told(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 4, 16))  # in, expert, out

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x, self.weight.transpose(0, 1))

    torch._dynamo.reset()
    monkeypatch.setenv("QGRAPH_VERIFY", "1")
    monkeypatch.setattr(edit, "_layout", lambda operand, order, plane: [*range(len(order))])
    message = "its weight is quantized in tiles of its last two axes, not of the matrix's, which are axes -3"
    if (hidden := BREAKS[how]) is not None:
        monkeypatch.setattr(hidden, lambda *_: None)
        message = "its weight .* elements are not what the format's definition gives"
    model = qgraph.compile(Experts(), BLOCKS, codegen=False)
    with pytest.raises(Exception, match=message):  # Dynamo wraps what a backend raises
        model(torch.randn(4, 8, 32))


def _tiled(text: str) -> Policy:
    rule = "{match: {op: [conv, experts]}, fprop: {input: T, weight: T}, dgrad: {grad_output: T, weight: T}, "
    rule += "wgrad: {grad_output: T, input: T}}"
    return load_policy_text(
        f"qgraph: 1\nname: tiles\nrules: [{rule}]\n".replace("T", text), "tiles"
    )


def test_tiles_over_groups_of_channels_or_rows_of_experts_are_told() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fits, self.crosses = nn.Conv1d(32, 32, 3, groups=2), nn.Conv1d(32, 16, 1, groups=2)
            self.experts = nn.Parameter(torch.randn(2, 16, 16))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.crosses(self.fits(x)).transpose(1, 2).flatten(0, 1)
            ends = torch.tensor([24, 48], dtype=torch.int32)
            return _grouped_mm(rows, self.experts, ends)

    torch._dynamo.reset()
    model = qgraph.compile(Both(), _tiled(f"e4m3/16x16/{SCALE}"), codegen=False)
    model(torch.randn(4, 32, 14, requires_grad=True)).sum().backward()
    entries = qgraph.coverage(model).entries
    rows = "blocks 16x16 of rows would lie across the rows of several experts"
    channels = "tiles would cross the convolution's groups of 8 channels"
    assert {(e.module, e.role, e.reason) for e in entries} == {
        *(("fits", role, "") for role in ("fprop", "dgrad", "wgrad")),
        ("crosses", "fprop", channels), ("crosses", "wgrad", channels),
        ("crosses", "dgrad", "blocks of 16 would cross the convolution's groups of 8 channels"),
        ("", "fprop", rows), ("", "dgrad", rows), ("", "wgrad", ""),
    }  # fmt: skip
