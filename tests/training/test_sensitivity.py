"""What qgraph whatif measures: held to eager torch, whole runs, the other front door, exact Hessians."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import qgraph
from qgraph.errors import ModelError
from qgraph.formats import parse_format
from qgraph.numerics import fake_quant
from qgraph.passes import Plan, graph_text
from qgraph.search.candidates import HIGH_CANDIDATE, parse_candidates
from qgraph.search.choosing import (
    Budget,
    choose,
    choose_at_random,
    rank_correlation,
    ranking,
    score,
    weight_of,
)
from qgraph.search.compose import compose_policy
from qgraph.search.curvature import hessian_traces
from qgraph.search.replay import Replay
from qgraph.search.sensitivity import Sensitivity, Unit, measure, run_policy, units_of

CANDIDATES = parse_candidates("nvfp4, nvfp4 rht sr, mxfp8")


def quiet(_: str) -> None:
    """Say nothing."""


def batch(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


@dataclass
class Fixture:
    model: nn.Module
    replay: Replay
    found: Sensitivity


@pytest.fixture(scope="module")
def llama() -> Fixture:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).train()
    replay = Replay(model, batch(0))
    return Fixture(model, replay, measure(replay, CANDIDATES, quiet, seconds=600))


def gradients_of(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss: Any = model(**inputs).loss
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    difference = sum(float((one[n] - other[n]).double().square().sum()) for n in other)
    return math.sqrt(difference / sum(float(g.double().square().sum()) for g in other.values()))


def test_the_step_is_eager_torchs(llama: Fixture) -> None:
    loss, gradients = gradients_of(llama.model, batch(0))
    assert llama.replay.loss == pytest.approx(loss, rel=1e-6)
    assert set(llama.replay.gradients()) == set(gradients)
    assert distance(llama.replay.gradients(), gradients) < 1e-6


def test_every_product_is_a_unit_or_left_out(llama: Fixture) -> None:
    found = llama.found
    inside = [site.number for unit in found.units for site in unit.sites]
    outside = [site.number for site in found.left_out]
    assert sorted(inside + outside) == [site.number for site in llama.replay.sites]
    assert len(found.units) == 3 * (2 * 7 + 1)
    assert {site.op for site in found.left_out} == {"sdpa"}
    assert set(found.effects) == {(i, c.name) for i in range(len(found.units)) for c in CANDIDATES}
    assert all(effect.measured for effect in found.effects.values())


def test_one_at_a_time_is_a_whole_run(llama: Fixture) -> None:
    """Brute force: the whole graph run anew with one product quantized, for every product."""
    replay, found = llama.replay, llama.found
    text, before = graph_text(replay.graph), dict(replay.values)
    base = {name: g.clone() for name, g in replay.gradients().items()}
    exact, loss = [], replay.loss
    for number, unit in enumerate(found.units):
        operands = CANDIDATES[0].operands(unit.sites[0].operand_kinds)
        plans = [Plan(site=site, status="quantized", operands=operands) for site in unit.sites]
        with replay.quantized(plans):
            replay.run()
            exact.append(distance(replay.gradients(), base))
            effect = found.effects[number, "nvfp4"]
            assert effect.gradient_error == pytest.approx(exact[-1], rel=1e-5, abs=1e-7)
            assert effect.loss_change == pytest.approx(replay.loss - loss, abs=1e-6)
    replay.run()
    assert graph_text(replay.graph) == text  # nothing is left in the graph
    assert replay.loss == loss
    assert set(replay.values) == set(before)
    order = sorted(range(len(exact)), key=lambda i: -exact[i])
    assert ranking(found, score(found, "gradient"), "nvfp4") == order


def test_statistics_are_those_of_the_operands(llama: Fixture) -> None:
    number, unit = next(
        (i, u)
        for i, u in enumerate(llama.found.units)
        if (u.module, u.role) == ("lm_head", "fprop")
    )
    effect = llama.found.effects[number, "mxfp8"]
    weight = dict(llama.model.named_parameters())["lm_head.weight"].detach()
    quantized = fake_quant(weight, parse_format("mxfp8"), -1)
    noise = (weight - quantized).double().square().sum() / weight.double().square().sum()
    assert effect.sqnr["weight"] == pytest.approx(-10 * math.log10(float(noise)), abs=1e-3)
    assert effect.underflow["weight"] == pytest.approx(
        float(((quantized == 0) & (weight != 0)).double().mean())
    )
    assert effect.clipped["weight"] == 0.0  # scales are rounded up
    assert any(e.clipped["input"] > 0 for (_, name), e in llama.found.effects.items()
               if name == "nvfp4" and "input" in e.clipped)  # fmt: skip
    assert effect.output_error < 0.1 < llama.found.effects[number, "nvfp4"].output_error
    assert weight_of(llama.replay, unit) == "lm_head.weight"


def test_first_order_is_the_slope_of_the_loss(llama: Fixture) -> None:
    effects = [
        e
        for (_, name), e in llama.found.effects.items()
        if name == "mxfp8" and e.unit.role == "fprop"
    ]
    slopes = [e.first_order for e in effects]
    changes = [e.loss_change for e in effects]
    assert None not in slopes
    assert None not in changes
    largest = max(effects, key=lambda e: abs(e.first_order or 0.0))
    assert largest.loss_change == pytest.approx(largest.first_order, rel=0.25)
    assert rank_correlation(slopes, changes) > 0.8  # type: ignore[arg-type]
    assert all(e.fisher is not None and e.fisher > 0 for e in effects)
    backward = [e for e in llama.found.effects.values() if e.unit.role != "fprop"]
    assert all(e.loss_change == 0 and e.first_order is None for e in backward)


def test_what_is_scaled_ranks_as_what_is_measured(llama: Fixture) -> None:
    hasty = measure(llama.replay, CANDIDATES, quiet, seconds=0)
    share = sum(e.measured for e in hasty.effects.values()) / len(hasty.effects)
    assert 1 / 3 <= share < 0.5  # wgrads, and each layer in one of its blocks
    keys = [key for key, effect in hasty.effects.items() if not effect.measured]
    scaled = [hasty.effects[key].gradient_error for key in keys]
    exact = [llama.found.effects[key].gradient_error for key in keys]
    assert rank_correlation(scaled, exact) > 0.6


def test_the_policy_for_a_budget(llama: Fixture) -> None:
    """It loads, keeps its budget at the other front door, does there what was measured, beats chance."""
    replay, found = llama.replay, llama.found
    scores, budget = score(found, "gradient"), Budget(kind="keep", amount=0.25)
    chosen, best = choose(found, scores, budget)
    assert 0.2 < best.cost <= 0.25
    error, loss_change = run_policy(replay, [*zip(found.units, chosen, strict=True)])
    by_site = {s.number: c for u, c in zip(found.units, chosen, strict=True) for s in u.sites}
    sites = [site for site in replay.sites if site.operands]
    wanted = {i: by_site.get(site.number, HIGH_CANDIDATE) for i, site in enumerate(sites)}
    _, policy = compose_policy("mine", "", sites, wanted)

    model = copy.deepcopy(llama.model)
    qgraph.compile(model, policy, codegen=False)
    torch.manual_seed(0)
    loss, gradients = gradients_of(model, batch(0))
    entries = [e for e in qgraph.coverage(model).entries if e.op != "sdpa"]
    kept = sum(e.flops for e in entries if e.status != "quantized") / sum(e.flops for e in entries)
    assert kept == pytest.approx(best.cost)
    exact = gradients_of(llama.model, batch(0))[1]
    # The draws of stochastic rounding are others there.
    assert distance(gradients, exact) == pytest.approx(error, rel=0.05)
    assert loss - replay.loss == pytest.approx(loss_change, abs=2e-4)

    fresh = Replay(llama.model, batch(1))  # data it was not chosen on
    units = by_place(fresh)
    own = run_policy(
        fresh, [(units[u.module, u.role], c) for u, c in zip(found.units, chosen, strict=True)]
    )[0]
    for seed in range(5):
        other, spent = choose_at_random(found, scores, budget, seed)
        assert 0.2 < spent.cost <= 0.25
        pairs = [(units[u.module, u.role], c) for u, c in zip(found.units, other, strict=True)]
        assert run_policy(fresh, pairs)[0] > 1.1 * own


def by_place(replay: Replay) -> dict[tuple[str, str], Unit]:
    return {(unit.module, unit.role): unit for unit in units_of(replay.sites)}


def test_keeping_one_helps_most_where_quantizing_it_hurts_most(llama: Fixture) -> None:
    found = llama.found
    assert found.all_gradient_error is not None
    effects = [found.effects[i, "nvfp4"] for i in range(len(found.units))]
    # Errors that partly cancel make small gains noise: the first third is held against the last.
    gains = [found.all_gradient_error - (e.kept_gradient_error or 0.0) for e in effects]
    order = sorted(range(len(effects)), key=lambda i: -effects[i].gradient_error)
    third = len(order) // 3
    first, last = (sum(gains[i] for i in part) for part in (order[:third], order[-third:]))
    assert first > 5 * abs(last)


def test_module_measures_rank_modules(llama: Fixture) -> None:
    found = llama.found
    traces = hessian_traces(llama.replay, probes=2)
    assert set(traces) == {n for n, p in llama.model.named_parameters() if p.dim() > 1}
    for measure_name in ("wgrad", "fisher", "hutchinson"):
        scores = score(found, measure_name, traces, llama.replay)
        for number, unit in enumerate(found.units):
            same = [i for i, u in enumerate(found.units) if u.module == unit.module]
            assert len({scores[i, "nvfp4"] for i in same}) == 1
            assert scores[number, "nvfp4"] >= scores[number, "mxfp8"] >= 0
        assert len({round(value, 12) for value in scores.values()}) > 10


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        y = self.two(torch.tanh(self.one(x)))
        return nn.functional.cross_entropy(y, labels), y


def test_traces_are_those_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = Small()
    x, labels = torch.randn(16, 4), torch.randint(0, 3, (16,))
    replay = Replay(model, {"x": x, "labels": labels})
    traces = hessian_traces(replay, probes=3, seed=5)

    def loss_of(one: Tensor, two: Tensor) -> Tensor:
        named = {"one.weight": one, "two.weight": two}
        found: Tensor = torch.func.functional_call(model, named, (x, labels))[0]
        return found

    weights = (model.one.weight.detach(), model.two.weight.detach())
    generator, expected = torch.Generator().manual_seed(5), [0.0, 0.0]
    for _ in range(3):  # the same signs, through the exact second derivative
        v = [(torch.randint(0, 2, w.shape, generator=generator) * 2 - 1).float() for w in weights]
        _, product = torch.autograd.functional.hvp(loss_of, weights, tuple(v))
        for i in range(2):
            expected[i] += float((v[i] * product[i]).sum()) / 3
    found = [traces["one.weight"], traces["two.weight"]]
    assert found == pytest.approx(expected, rel=0.01, abs=1e-3)


def test_a_model_without_a_loss_is_told() -> None:
    with pytest.raises(ModelError, match="first output is not a loss"):
        Replay(nn.Sequential(nn.Linear(4, 4)), {"input": torch.randn(2, 4)})
