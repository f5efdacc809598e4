"""qgraph train and bench, from the command line to what they print and write."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qgraph.compat import inductor
from qgraph.errors import ModelError
from qgraph.models.load import load_config
from qgraph.tools.bench import _print_many, _print_one, _print_policies
from tests.doors.models import one_block
from tests.tools.command import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    one_block()[0].save_pretrained(folder)
    return folder


SHAPE = ("--batch", "2", "--length", "32")


def test_train_compares_a_policy_with_its_baseline_on_any_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("She sells sea shells by the sea shore. " * 300)
    out = tmp_path / "out"
    result = run(
        "train", str(model), "--policy", "nvfp4_naive", "--text", str(tmp_path / "text"), "--out", str(out),
        "--steps", "6", *SHAPE, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads(result.out)  # nothing but the JSON is on stdout
    assert found == json.loads((out / "losses.json").read_text())
    assert set(found) == {
        "model", "policy", "baseline", "steps", "tokens_per_step", "losses", "held_out", "gap_percent",
        "gap_spread", "seeds", "state_bytes", "step_ratio",
    }  # fmt: skip
    assert found["losses"]["nvfp4_naive"] != found["losses"]["high"]
    low, high = (found["held_out"][name] for name in ("nvfp4_naive", "high"))
    assert found["gap_percent"] == pytest.approx(100 * (low - high) / high)
    assert "policy nvfp4_naive: 21 of 26 products quantized" in result.err
    assert {path.name for path in out.iterdir()} == {
        "high",
        "loss.png",
        "losses.json",
        "nvfp4_naive",
    }
    before = load_file(model / "model.safetensors")
    for name in ("high", "nvfp4_naive"):
        after = load_file(out / name / "model.safetensors")
        assert set(after) == set(before)
        assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    # What was trained says under which plan, and can be looked at; a run's report finds it.
    trained = json.loads(run("inspect", str(out / "nvfp4_naive"), "--json").out)
    assert trained["policy"] == "nvfp4_naive"
    assert [p["status"] for p in trained["products"]].count("quantized") == 21
    page = tmp_path / "run.html"
    reported = run("report", str(out), "--out", str(page), "--length", "16", "--json")
    assert reported.code == 0, reported.err
    data = json.loads(reported.out)
    assert data["curves"]["losses"]["high"] == found["losses"]["high"]
    shown = {
        (s["module"], s["role"], s["plan"]) for s in data["sites"] if s["status"] == "quantized"
    }
    assert len(shown) == 21


def timed(model: Path, *arguments: str) -> dict[str, Any]:
    result = run(
        "bench", "--model", str(model), "--policy", "int8", *SHAPE, "--rounds", "3", "--json", *arguments
    )  # fmt: skip
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_bench_prints_ratios_to_plain_inductor(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Caches that other tests have filled will do; `test_bench_times_telemetry` has empty ones.
    monkeypatch.setattr(inductor, "fresh_cache", lambda folder: nullcontext())
    found = timed(model, "--policy", "high")["models"]
    assert [one["policy"] for one in found] == ["int8", "high"]
    assert found[0]["plain"] == found[1]["plain"]  # timed once
    assert found[1]["products"] == 26
    assert found[1]["lowering"] == {}
    check_ratios(found[0])


def test_several_policies_are_timed_beside_plain_alone(model: Path) -> None:
    two = run("bench", "--model", str(model), "--policy", "int8", "--policy", "high", "--peers")
    assert two.code == 1
    assert "several policies are timed beside plain alone\n  fix: give one --policy" in two.err


@pytest.mark.only_full
def test_bench_times_telemetry_and_first_calls_on_empty_caches(model: Path) -> None:
    found = timed(model, "--telemetry", "50")
    check_ratios(found)
    seen = found["telemetry"]
    assert seen["every"] == 50
    # Which is longer, three rounds on a busy machine do not say.
    assert min(seen["look"], seen["idle"]) > 0
    assert seen["overhead"] == pytest.approx((49 * seen["idle"] + seen["look"]) / 50 - 1)


def check_ratios(found: dict[str, Any]) -> None:
    assert (found["policy"], found["products"]) == ("int8", 26)
    assert len(found["plain"]["steps_s"]) == len(found["qgraph"]["steps_s"]) == 3
    rounds = zip(found["qgraph"]["steps_s"], found["plain"]["steps_s"], strict=True)
    own = sorted(step / plain for step, plain in rounds)
    assert found["ratios"]["step"] == pytest.approx(own[1])
    assert found["ratios"]["step_quartiles"] == pytest.approx(
        [(own[0] + own[1]) / 2, own[1], (own[1] + own[2]) / 2]
    )
    assert found["plain"]["first_call_s"] > found["plain"]["median_step_s"]
    assert 0 < found["pass_share"] < 0.5
    memory = [found[name]["peak_memory_bytes"] for name in ("plain", "qgraph")]
    assert 1 <= memory[1] / memory[0] < 1.3  # of so small a step a quantized operand is a part


def test_bench_prints_one_table_for_several_models_and_for_peers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    side = {"first_call_s": 2.0, "median_step_s": 0.01, "peak_memory_bytes": 2**20}
    ratios = {
        "first_call": 1.25, "step": 1.1, "step_quartiles": [1.0, 1.1, 1.2], "peak_memory": 1.0
    }  # fmt: skip
    result: dict[str, Any] = {
        "model": "preset:bench-llama,layers=64,hidden=256", "policy": "nvfp4", "tokens": 64,
        "device": "cpu", "rounds": 3, "plain": side, "qgraph": side, "ratios": ratios, "lowering": {},
        "products": 50, "pass_s": 0.1, "pass_share": 0.05, "kernels": {},
    }  # fmt: skip
    _print_many([result, result])
    many = capsys.readouterr().out
    assert max(map(len, many.splitlines())) <= 80, many
    assert many.count("layers=64") == 2
    assert "2.0 ms" in many
    native = {
        "lowering": {"native int8": 42},
        "ratios": {**ratios, "step_quartiles": [0.5, 0.6, 0.7]},
    }
    _print_policies([result, {**result, **native, "policy": "int8"}])
    policies = capsys.readouterr().out
    assert max(map(len, policies.splitlines())) <= 80, policies
    assert "int8: faster than plain here, half of the rounds 0.50 to 0.70 of it" in policies
    assert "int8: 42 products: native int8" in policies
    assert "nvfp4: faster" not in policies
    peers = {"fast": {**ratios, "step": 1.05}, "gone": {"skipped": "it is not installed"}}
    _print_one({**result, "peers": peers})
    one = capsys.readouterr().out
    assert one.index("fast") < one.index("qgraph nvfp4")  # by their steps
    assert "gone: not run: it is not installed" in one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-llama,layer=3", "'layer=3' changes nothing of a preset"),
        ("tiny-llama,layers=x", "'layers=x' changes nothing of a preset"),
        (
            "tiny-llama,hidden=48",
            "hidden=48 does not make whole heads\n  fix: write a multiple of 32",
        ),
        ("tiny", "no such preset"),
    ],
)
def test_a_preset_of_other_sizes(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_config(f"preset:{name}")
    found = load_config("preset:tiny-llama,layers=2,hidden=64")
    assert (found.num_hidden_layers, found.hidden_size, found.intermediate_size) == (2, 64, 192)
    assert (found.num_attention_heads, found.head_dim) == (2, 32)
