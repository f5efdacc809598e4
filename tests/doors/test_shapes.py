"""Sizes that are no multiple of a block, and batches whose size changes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph.policy import load_policy
from tests.doors.capture import interpret
from tests.doors.mlp import MLP
from tests.doors.models import nvfp4_policy, policy_of
from tests.doors.reference import NVFP4, ReferenceMLP, numeric, take_step, uniform

MXFP8 = uniform(numeric("e4m3/1x32/ue8m0-rceil"))
RECIPES = {"nvfp4": NVFP4, "mxfp8": MXFP8, "int8": uniform(numeric("int8/row/fp32"))}


def _model(*sizes: int) -> MLP:
    torch.manual_seed(0)
    return MLP(*sizes, bias=False)


def _data(*shape: int, out: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator), torch.randn(
        *shape[:-1], out, generator=generator
    )


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize(
    "sizes", [(21, 50, 37, 24), (5, 3, 2, 7), (33, 17, 31, 15), (1, 50, 37, 1), (2, 1, 1, 2)]
)
def test_ragged_sizes_equal_eager_layers(recipe: str, sizes: tuple[int, ...]) -> None:
    tokens, *features = sizes
    model, (x, target) = _model(*features), _data(tokens, features[0], out=features[-1])
    reference = deepcopy(model)
    trace = interpret(model, load_policy(recipe))
    got = take_step(model, x, target, seed=3)
    want = take_step(ReferenceMLP(reference, RECIPES[recipe], trace.streams()), x, target, seed=3)
    assert got.differing(want) == []
    assert len(trace.report.quantized) == len(trace.report.entries) == 6


def test_the_report_says_which_sums_are_padded() -> None:
    model, (x, target) = _model(50, 37, 32), _data(21, 50, out=32)
    trace = interpret(model, nvfp4_policy())
    take_step(model, x, target, seed=3)
    notes = {(entry.module, entry.role): entry.notes for entry in trace.report.entries}

    def note(size: int) -> tuple[str, ...]:
        return (
            f"{size} summed elements are no multiple of 16: the last block is padded with zeros",
        )

    assert notes == {
        ("layers.fc0", "fprop"): note(50),
        ("layers.fc0", "dgrad"): note(37),
        ("layers.fc0", "wgrad"): note(21),
        ("layers.fc1", "fprop"): note(37),
        ("layers.fc1", "dgrad"): (),  # sums over 32
        ("layers.fc1", "wgrad"): note(21),
    }


def test_ragged_products_are_kept_where_the_policy_says_so() -> None:
    model, (x, target) = _model(50, 37, 32), _data(21, 50, out=32)
    reference = deepcopy(model)
    products = "fprop: {input: fp8, weight: fp8}, dgrad: {grad_output: fp8, weight: fp8}"
    text = f"  - {{match: {{op: linear}}, {products}}}"
    trace = interpret(model, policy_of(text, head="ragged: keep"))
    got = take_step(model, x, target, seed=3)
    assert {
        (e.module, e.role): (e.status, e.reason) for e in trace.report.entries if e.role != "wgrad"
    } == {
        ("layers.fc0", "fprop"): ("kept", _kept(50)),
        ("layers.fc0", "dgrad"): ("kept", _kept(37)),
        ("layers.fc1", "fprop"): ("kept", _kept(37)),
        ("layers.fc1", "dgrad"): ("quantized", ""),
    }
    # Only the last layer's dgrad is left: the first layer's gradients change, nothing else.
    plain = take_step(reference, x, target, seed=3)
    assert set(got.differing(plain)) == {"layers.fc0.weight", "x"}


def _kept(size: int) -> str:
    return f"{size} summed elements are no multiple of 32, and the policy says ragged: keep"


def test_an_empty_batch_passes() -> None:
    model = _model(32, 32)
    interpret(model, nvfp4_policy())
    model(torch.zeros(0, 32)).sum().backward()
    grad = model.weight(0).grad
    assert grad is not None
    assert torch.equal(grad, torch.zeros(32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp8"])
def test_a_dynamic_batch_compiles_twice_and_equals_eager_layers_at_every_size(recipe: str) -> None:
    model = _model(20, 48, 24)
    reference = deepcopy(model)
    shape = deepcopy(model)
    policy = load_policy(recipe)
    trace = interpret(shape, policy)
    take_step(shape, *_data(8, 6, 20, out=24), seed=0)
    torch._dynamo.reset()
    qgraph.compile(model, policy)
    expected = ReferenceMLP(reference, RECIPES[recipe], trace.streams())
    graphs = []
    for step, size in enumerate((8, 8, 5, 3, 7)):
        x, target = _data(size, 6, 20, out=24)
        got = take_step(model, x, target, seed=step)
        assert got.differing(take_step(expected, x, target, seed=step)) == []
        graphs.append(qgraph.coverage(model).graphs)
    assert graphs == [1, 1, 2, 2, 2]
    entries = qgraph.coverage(model).entries
    assert len(entries) == len(qgraph.coverage(model).quantized) == 6
    assert all("dynamic" in note for e in entries if e.role == "wgrad" for note in e.notes)
    assert all(e.notes for e in entries if e.role == "wgrad")


class _Attention(nn.Module):
    """Scores of a batch of queries and keys, times values: products without a weight."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)


def test_products_without_a_weight_equal_their_quantized_selves() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, size, 20) for size in (7, 9, 9))
    model = _Attention()
    trace = interpret(
        model, policy_of("  - {match: {op: [matmul, sdpa]}, fprop: {lhs: fp4, rhs: fp8}}")
    )
    got = model(q, k, v)
    fp4, fp8 = numeric("e2m1/1x16/e4m3/fp32"), numeric("e4m3/1x32/ue8m0-rceil")
    scores = torch.bmm(fp4(q, -1, None), fp8(k, -1, None).transpose(1, 2))
    powers = (scores - scores.amax(-1, keepdim=True)).exp()  # as Inductor writes a softmax
    shares = powers / powers.sum(-1, keepdim=True)
    assert torch.equal(got, torch.bmm(fp4(shares, -1, None), fp8(v, -2, None)))
    assert [(e.op, e.role, e.status, e.shape) for e in trace.report.entries] == [
        ("qk", "fprop", "quantized", (3, 7, 9, 20)),
        ("pv", "fprop", "quantized", (3, 7, 20, 9)),
    ]
