"""Experiments: what a verdict needs, resuming, the same numbers twice, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qgraph.experiments.experiment import (
    Experiment,
    experiment_names,
    load_experiment,
    make_experiment,
)
from qgraph.experiments.measures import language
from qgraph.experiments.outcome import page, plot
from qgraph.experiments.reproducing import outcome_json, reproduce, run_key
from qgraph.experiments.verdict import CONTRADICTED, NOT_VISIBLE, REPRODUCED, judge, overall
from qgraph.ops import state
from tests.tools.command import run

TENSORS = """\
title: Two formats
source: here
claim: More bits are better.
measure: tensor
settings: {rows: 8, size: 64}
seeds: [0, 1, 2]
baseline: four
metrics: [normal]
arms: {four: {format: int4/row/fp32}, eight: {format: int8/row/fp32}}
expect:
  - {says: eight bits are better, metric: normal, less: [four, eight]}
  - {says: four bits are better, metric: normal, less: [eight, four]}
"""
TRAINING = """\
title: Two policies
source: here
claim: None.
measure: language
settings: {hidden: 16, layers: 1, batch: 2, length: 16, steps: 8, rate: 1.0e-2, tail: 2}
seeds: [0, 1]
baseline: high
twin: again
metrics: [loss]
policies:
  own: &own
    extends: int8
    formats: {int8: {element: int4, block: row, scale: fp32, rounding: stochastic}}
  late: {<<: *own, schedule: [{at: 50%, set: high}]}
  few bits: {<<: *own, optimizer: {exp_avg: int4/row/fp32}, stash: bfp4}
arms:
  high: {policy: high}
  again: {policy: high, perturb: 1.0e-2}
  own: {policy: own}
  high after half: {policy: late}
  few bits: {policy: few bits}
  gpt2: {policy: own, model: gpt2}
expect: [{says: high is better, metric: loss, less: [high, own]}]
"""


def verdict(a: list[float], b: list[float], twin: list[float] | None = None) -> str:
    """The verdict of `a < b` over seeds, with noise as far as `twin` is from `a`."""
    text = (
        TENSORS.replace("four", "a")
        .replace("eight", "b")
        .replace("b: {format", "t: {format: int8/row/fp32}, b: {format")
    )
    experiment = make_experiment("e", text + ("twin: t\n" if twin else ""))
    arms = {"a": a, "b": b, "t": twin or a}
    results = {arm: {s: {"normal": v} for s, v in enumerate(vs)} for arm, vs in arms.items()}
    return judge(experiment, results)[0].verdict


def test_a_difference_counts_above_the_noise_alone() -> None:
    assert verdict([1.0, 1.0, 1.0], [1.2, 1.21, 1.19]) == REPRODUCED
    assert verdict([1.2, 1.21, 1.19], [1.0, 1.0, 1.0]) == CONTRADICTED
    assert verdict([1.0, 1.0, 1.0], [1.2, 0.9, 1.1]) == NOT_VISIBLE
    # Two seeds 0.04 apart have a mean within 0.25 of the truth, by Student's t.
    assert verdict([1.0, 1.0], [1.2, 1.24]) == NOT_VISIBLE
    # A run moves by 0.17 when its start changes by 1%, a mean of three by 0.1: 0.2 is twice that.
    assert verdict([1.0, 1.0, 1.0], [1.2, 1.21, 1.19], twin=[1.0, 1.31, 1.0]) == NOT_VISIBLE
    assert verdict([1.0, 1.0, 1.0], [1.2, 1.21, 1.19], twin=[1.0, 1.28, 1.0]) == REPRODUCED
    assert verdict([1.0, 1.0, 1.0], [math.inf, 5.0, 5.0]) == REPRODUCED


def test_equal_and_value_have_a_margin() -> None:
    text = TENSORS.replace("less: [four, eight]", "equal: [four, eight], within: 0.1").replace(
        "less: [eight, four]", "value: 2, of: eight, within: 0.1"
    )
    experiment = make_experiment("e", text)

    def found(four: float, eight: float) -> list[str]:
        results = {
            "four": {s: {"normal": four} for s in range(3)},
            "eight": {s: {"normal": eight + 0.001 * s} for s in range(3)},
        }
        return [finding.verdict for finding in judge(experiment, results)]

    assert found(2.05, 2.0) == [REPRODUCED, REPRODUCED]
    assert found(1.5, 2.0) == [CONTRADICTED, REPRODUCED]
    assert found(1.5, 1.5) == [REPRODUCED, CONTRADICTED]


def test_an_interrupted_experiment_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("e", TENSORS)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(experiment, tmp_path / "cut", say)
    done = {file.name for file in (tmp_path / "cut" / "runs").iterdir()}
    assert done == {"four-0.json", "four-1.json", "four-2.json"}
    after = reproduce(experiment, tmp_path / "cut", lambda text: None)
    whole = reproduce(experiment, tmp_path / "whole", lambda text: None)
    assert (after.reused, whole.reused) == (3, 0)
    assert after.results == whole.results
    assert [f.verdict for f in whole.findings] == [REPRODUCED, CONTRADICTED]
    assert overall(whole.findings) == whole.verdict == CONTRADICTED
    plot(whole, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "| eight bits are better | +" in page([whole])
    # Other settings are other runs.
    other = make_experiment("e", TENSORS.replace("size: 64", "size: 32"))
    assert reproduce(other, tmp_path / "cut", lambda text: None).reused == 0
    # So are those of before a formula changed.
    monkeypatch.setattr(f"{run_key.__module__}.EDITIONS", {"tensor": 2})
    assert reproduce(experiment, tmp_path / "whole", lambda text: None).reused == 0


def test_a_run_is_the_same_twice_and_a_policy_means_all_of_its_keys() -> None:
    experiment = make_experiment("e", TRAINING)

    def loss(arm: str, seed: int = 0) -> float:
        return language(experiment, arm, seed, lambda text: None)["loss"]

    first = loss("own")
    switched = loss("high after half")  # leaves its compiled models and optimizer behind
    assert loss("own") == first
    assert loss("high after half") == switched
    state.EXPERIMENT_MODELS.clear()  # compiled anew: the random bits are the same ones
    torch.compiler.reset()
    assert loss("own") == first
    high = loss("high")
    assert len({first, switched, high, loss("few bits"), loss("gpt2")}) == 5
    assert 0 < abs(loss("again") - high) < 0.1
    assert loss("own", seed=1) != first


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_is_sound(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.claim
    assert experiment.source
    assert experiment.limits
    keys = {run_key(experiment, arm, seed) for arm in experiment.arms for seed in experiment.seeds}
    assert len(keys) == len(experiment.arms) * len(experiment.seeds)
    compared = {arm for e in experiment.expect for side in e.sides for arm in side}
    assert compared
    assert {e.metric for e in experiment.expect} <= set(experiment.metrics)


def test_outcome_is_plain_data(tmp_path: Path) -> None:
    experiment: Experiment = make_experiment("e", TENSORS)
    data = outcome_json(reproduce(experiment, tmp_path, lambda text: None))
    assert json.loads(json.dumps(data)) == data
    assert data["findings"][0]["verdict"] == REPRODUCED


def test_the_command_lists_refuses_and_writes_nothing_for_a_wrong_name(tmp_path: Path) -> None:
    listed = run("reproduce", "--list", "--json")
    assert {entry["name"] for entry in json.loads(listed.out)} == set(experiment_names())
    assert run("reproduce", "--list").out.startswith(min(experiment_names()))
    out = tmp_path / "out"
    wrong = run("reproduce", "fp4_scale", "--out", str(out))
    assert wrong.code == 1
    assert "unknown experiment 'fp4_scale'\n  fix: did you mean 'fp4_scales'?" in wrong.err
    assert run("reproduce", "--out", str(out)).err.startswith("error: no experiment is named")
    nowhere = run("reproduce", "fp4_scales", "--out", str(out), "--page", str(tmp_path / "x" / "y"))
    assert "no such directory" in nowhere.err
    assert not out.exists()
    (tmp_path / "file").write_text("")
    taken = run("reproduce", "fp4_scales", "--out", str(tmp_path / "file"))
    assert (taken.code, "give --out a directory" in taken.err) == (1, True)


def test_recipes_lists_and_prints_a_page() -> None:
    listed = run("recipes")
    assert listed.code == 0
    assert max(map(len, listed.out.splitlines())) <= 80
    assert json.loads(run("recipes", "--json").out)[0]["name"] == "dfp16"
    one = run("recipes", "fp4_ffn")
    assert "fprop  input e2m1/1x128, weight e2m1/1x128" in one.out
    assert "did you mean 'quartet'" in run("recipes", "quarted").err


@pytest.mark.only_full
def test_the_orderings_of_weights_activations_gradients_and_moments_show_in_two_seeds() -> None:
    sizes = {"model": "gpt2", "hidden": 48, "layers": 2, "batch": 8, "length": 64}
    settings = {**sizes, "steps": 120, "rate": 2e-3, "tail": 30}
    products, moments = (
        replace(load_experiment(f"efficient_{name}"), settings=settings)
        for name in ("orderings", "moments")
    )

    def losses(arm: str, experiment: Experiment = products) -> list[float]:
        return [language(experiment, arm, seed, lambda text: None)["loss"] for seed in (0, 1)]

    high = losses("high")
    eight, token, tensor, second = (
        [loss - plain for loss, plain in zip(found, high, strict=True)]
        for found in (
            losses("W8A8G8"), losses("A4 token"), losses("A4 tensor"), losses("V8 tensor", moments),
        )
    )  # fmt: skip
    assert all(0 < abs(difference) < 0.0015 for difference in eight)  # as good, and not untouched
    assert all(a > b > 0.0015 for a, b in zip(tensor, token, strict=True))
    assert all(difference > 0.1 for difference in second)
