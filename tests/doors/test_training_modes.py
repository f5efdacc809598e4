"""The ways people train: autocast, accumulation, tied and frozen parameters, evaluation."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from qgraph.policy import load_policy
from tests.doors.capture import interpret
from tests.doors.mlp import MLP
from tests.doors.models import make_llama, nvfp4_policy, run_model, token_batch
from tests.doors.reference import NVFP4, Recipe, ReferenceMLP, numeric, take_step, uniform

RECIPES: dict[str, Recipe] = {"nvfp4": NVFP4, "mxfp8": uniform(numeric("e4m3/1x32/ue8m0-rceil"))}


def _model() -> MLP:
    torch.manual_seed(0)
    return MLP(48, 64, 32)


def _data(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 48, generator=generator), torch.randn(40, 32, generator=generator)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_autocast_quantizes_the_bfloat16_values(recipe: str) -> None:
    model, (x, target) = _model(), _data()
    reference = deepcopy(model)
    trace = interpret(model, load_policy(recipe))
    with torch.autocast("cpu", torch.bfloat16):
        got = take_step(model, x, target, seed=3)
    assert got.output.dtype == torch.bfloat16
    assert {call.before.dtype for call in trace.calls} == {torch.bfloat16}
    assert {entry.dtype for entry in trace.report.entries} == {"bf16"}
    eager = ReferenceMLP(reference, RECIPES[recipe], trace.streams(), dtype=torch.bfloat16)
    want = take_step(eager, x, target, seed=3)
    assert got.differing(want) == []
    parameters = dict(model.named_parameters())
    assert {name: g.dtype for name, g in got.gradients.items()} == dict.fromkeys(
        [*parameters, "x"], torch.float32
    )


def test_accumulated_gradients_are_the_sum_of_the_micro_batches() -> None:
    model = _model()
    interpret(model, nvfp4_policy())
    batches = [_data(seed) for seed in (1, 2)]
    apart = [take_step(model, *batch, seed=seed).gradients for seed, batch in enumerate(batches)]
    for seed, (x, target) in enumerate(batches):
        torch.manual_seed(seed)
        torch.autograd.backward(mse_loss(model(x.requires_grad_()), target))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, apart[0][name] + apart[1][name])


@pytest.mark.parametrize("policy", ["nvfp4", "everything"])
def test_tied_embeddings_train_and_every_product_has_one_row(policy: str) -> None:
    model = make_llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    plain = deepcopy(model)
    batch = token_batch()
    model(batch)
    trace = interpret(model, load_policy("nvfp4") if policy == "nvfp4" else nvfp4_policy())
    got, want = (run_model(each, input_ids=batch, labels=batch) for each in (model, plain))
    assert got.keys() == want.keys()
    for name, value in want.items():
        # Both changed, and not beyond what 4 bits do: far more would be another gradient.
        assert 0 < (got[name] - value).norm() < 0.8 * value.norm(), name
    entries = trace.report.entries
    assert len(trace.plans) == 1
    assert len(entries) == len(trace.plans[0]) == 3 * (2 * 7 + 1) + 2 * 2  # and fused attention
    head = [entry for entry in entries if entry.module == "lm_head"]
    assert sorted(entry.role for entry in head) == ["dgrad", "fprop", "wgrad"]
    assert {entry.status for entry in head} == {"kept" if policy == "nvfp4" else "quantized"}
    assert all(entry.reason for entry in entries if entry.status != "quantized")
    blocks = {
        (entry.block, entry.status)
        for entry in entries
        if entry.op == "linear" and entry.block is not None
    }
    assert blocks == {(0, "quantized"), (1, "kept" if policy == "nvfp4" else "quantized")}


def test_a_frozen_weight_has_no_wgrad() -> None:
    model, (x, target) = _model(), _data()
    model.layers["fc0"].weight.requires_grad_(False)
    reference = deepcopy(model)
    trace = interpret(model, nvfp4_policy())
    got = take_step(model, x, target, seed=3)
    want = take_step(ReferenceMLP(reference, NVFP4, trace.streams()), x, target, seed=3)
    assert got.differing(want) == []
    rows = sorted((entry.module, entry.role, entry.status) for entry in trace.report.entries)
    assert rows == [
        ("layers.fc0", "dgrad", "quantized"), ("layers.fc0", "fprop", "quantized"),
        ("layers.fc1", "dgrad", "quantized"), ("layers.fc1", "fprop", "quantized"),
        ("layers.fc1", "wgrad", "quantized"),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_evaluation_without_gradients_is_quantized_as_training_is(recipe: str) -> None:
    model, (x, target) = _model(), _data()
    plain = deepcopy(model)
    trace = interpret(model, load_policy(recipe))
    training = take_step(model, x, target, seed=3)
    rows = len(trace.report.entries)
    model.eval()
    with torch.no_grad():
        output = model(x)
    assert torch.equal(output, training.output)
    assert not torch.equal(output, plain(x))
    assert trace.report.graphs == 2
    assert len(trace.report.entries) == rows  # the backward's rows stay


def test_evaluation_first_is_quantized_too() -> None:
    model, (x, target) = _model(), _data()
    trace = interpret(model, nvfp4_policy())
    with torch.no_grad():
        output = model.eval()(x)
    assert [entry.status for entry in trace.report.entries] == ["quantized", "quantized"]
    assert torch.equal(output, take_step(model.train(), x, target, seed=3).output)
    assert len(trace.report.entries) == 6
