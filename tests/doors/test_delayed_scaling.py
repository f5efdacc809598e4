"""FP8 with delayed scaling: the scale of a step comes from the steps before, and checkpoints keep it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph import numerics, ops
from qgraph.errors import GraphError
from qgraph.formats import parse_format
from qgraph.ops.history import BUFFER, row_of
from qgraph.policy import Policy, load_policy_text
from tests.doors.mlp import MLP
from tests.doors.reference import take_step

TEXT = "e4m3/tensor/fp32:delayed3"


def policy() -> Policy:
    return load_policy_text(
        """
qgraph: 1
name: delayed
formats:
  fp8: {element: e4m3, block: tensor, scale: fp32, range: delayed3}
  grad: {element: e5m2, block: tensor, scale: fp32, range: delayed2}
rules:
  - match: {op: linear}
    fprop: {input: fp8, weight: fp8}
    dgrad: {grad_output: grad, weight: fp8}
    wgrad: {input: fp8, grad_output: grad}
"""
    )


def batches() -> list[Tensor]:
    """Inputs whose largest magnitudes go up and down."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(16, 32, generator=generator) * size for size in (1, 4, 0.1, 0.1, 0.1, 2)]


def expected(x: Tensor, past: list[float]) -> Tensor:
    amax = torch.tensor(max(past[-3:], default=0.0))
    return numerics.fake_quant(x, parse_format(TEXT), -1, None, None, amax=amax)


@pytest.mark.parametrize("codegen", [False, True], ids=["op by op", "inductor"])
def test_each_step_uses_the_largest_of_the_three_before(codegen: bool) -> None:
    torch.manual_seed(0)
    model = MLP(32, 16, bias=False)
    weight = model.weight(0)
    plain = deepcopy(model)
    qgraph.compile(model, policy(), codegen=codegen)
    past: list[float] = []
    weights: list[float] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for x in batches():
        optimizer.step()
        got = take_step(model, x, torch.zeros(16, 16), seed=0).output
        want = expected(x, past) @ expected(weight, weights).mT
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(got, plain(x), rtol=1e-5, atol=1e-6)
        past.append(float(x.abs().max()))
        weights.append(float(weight.abs().max()))
    # The first step has no past: its scale is 1. The fourth still sees the second's 4 and saturates
    # nothing; the sixth has forgotten it, and saturates.
    history = model.get_buffer(BUFFER)
    rows = [row[row > 0].tolist() for row in history if bool((row > 0).any())]
    assert len(rows) == 6  # two operands of three products: the input needs a gradient here
    assert pytest.approx(past[:-4:-1]) in rows


def test_evaluation_leaves_the_history_alone() -> None:
    torch.manual_seed(0)
    model = MLP(32, 16)
    qgraph.compile(model, policy(), codegen=False)
    take_step(model, batches()[0], torch.zeros(16, 16), seed=0)
    before = model.get_buffer(BUFFER).clone()
    assert bool((before > 0).any())
    with torch.no_grad():
        model(batches()[1])
    assert torch.equal(model.get_buffer(BUFFER), before)


def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> MLP:
        torch.manual_seed(0)
        return qgraph.compile(MLP(32, 16, 16), policy(), codegen=False)

    def train(model: nn.Module, some: list[Tensor]) -> list[Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for x in some:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    whole = train(fresh(), batches())
    first = fresh()
    train(first, batches()[:3])
    torch.save(first.state_dict(), tmp_path / "half.pt")
    second = fresh()
    second.load_state_dict(torch.load(tmp_path / "half.pt"))
    assert torch.equal(torch.stack(train(second, batches()[3:])), torch.stack(whole[3:]))
    forgetful = fresh()
    state = {k: v for k, v in first.state_dict().items() if k != BUFFER}
    forgetful.load_state_dict(state, strict=False)
    assert not torch.equal(torch.stack(train(forgetful, batches()[3:])), torch.stack(whole[3:]))


def test_two_models_of_one_policy_keep_apart() -> None:
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(qgraph.compile(MLP(32, 16), policy(), codegen=False))
    take_step(models[0], batches()[1], torch.zeros(16, 16), seed=0)
    assert bool((models[0].get_buffer(BUFFER) > 0).any())
    assert not bool((models[1].get_buffer(BUFFER) > 0).any())


def test_a_model_in_another_dtype_has_the_ranges_it_had() -> None:
    torch.manual_seed(0)
    model = qgraph.compile(MLP(32, 16), policy(), codegen=False)
    take_step(model, batches()[1], torch.zeros(16, 16), seed=0)
    before = model.get_buffer(BUFFER).clone()
    model.bfloat16()
    with torch.no_grad():
        model.eval()(batches()[2].bfloat16())  # looks at the histories, and adds nothing
    found = model.get_buffer(BUFFER)
    assert not torch.equal(before, before.bfloat16().float())
    assert torch.equal(found, before)


def test_numbers_that_are_not_finite_do_not_stay_in_the_scale() -> None:
    torch.manual_seed(0)
    model = MLP(32, 16)
    qgraph.compile(model, policy(), codegen=False)
    good, bad = batches()[0], batches()[0].clone()
    bad[3, 3] = torch.inf
    take_step(model, good, torch.zeros(16, 16), seed=0)
    take_step(model, bad, torch.zeros(16, 16), seed=0)
    found = take_step(model, good, torch.zeros(16, 16), seed=0)
    assert bool(found.output.isfinite().all())


def test_without_a_model_to_keep_it_a_delayed_range_says_so() -> None:
    with pytest.raises(GraphError, match="keeps its amax history in a model, and there is none"):
        ops.delayed(torch.ones(2, 2), -1, 0, 3, True)


def test_rows_of_operands_do_not_meet() -> None:
    rows = [
        row_of(module, role, product, operand)
        for module in range(3)
        for role in ("fprop", "dgrad", "wgrad")
        for product in range(4)
        for operand in range(2)
    ]
    assert len(set(rows)) == len(rows) == max(rows) + 1
