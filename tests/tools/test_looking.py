"""inspect, explain, diff and check: what they print, and that all of them speak of one plan."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qgraph
from qgraph.models.load import load_model
from qgraph.passes import Report, report_json
from qgraph.policy import load_policy_text
from qgraph.tools.inspect import schedule_note
from qgraph.tools.show.look import Look
from tests.tools.command import run
from tests.tools.looked_at import EIGHT, FOUR, NAIVE, convert, save_model

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model and its conversions by two policies; it is the working directory."""
    folder = tmp_path_factory.mktemp("look")
    save_model(folder / "model")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, text in (("four", FOUR), ("eight", EIGHT), ("naive", NAIVE)):
            Path(f"{name}.yaml").write_text(text)
        for name in ("four", "eight"):
            assert convert(Path("model"), f"{name}.yaml", Path(name)).code == 0
        yield folder
    finally:
        os.chdir(here)


SITE = "model.layers.0.mlp.down_proj"
# The file that holds what a command prints.
COMMANDS = {
    "inspect": ("inspect", "four", "--module", "*.0.*"),
    "inspect_layer": ("inspect", "four", "--layer", SITE),
    "inspect_sites": ("inspect", "four", "--format", "high", "--product", "wgrad", "--sites"),
    "explain": ("explain", "four", "--site", f"{SITE}:wgrad"),
    "explain_kept": ("explain", "four", "--site", "lm_head:fprop"),
    "diff_policies": ("diff", "four.yaml", "eight.yaml"),
    "diff_converted": ("diff", "four", "eight", "--site", SITE),
    "diff_before_after": ("diff", "four", "--site", f"{SITE}:wgrad"),
    "check": ("check", "naive.yaml", "--params", "1B", "--tokens", "10T"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_printed_is_the_golden_text(name: str, place: Path) -> None:
    result = run(*COMMANDS[name])
    assert result.code == 0, result.err
    # Numbers of nodes are transformers' and torch's; what stands where is ours.
    shown = re.sub(r"\b((?:primals|[a-z_]*[a-z]))_\d+\b", r"\1_N", result.out)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("QGRAPH_GOLDEN") == "write":
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
    wide = [line for line in result.out.splitlines() if len(line) > 80]
    assert not [line for line in wide if " = " not in line]  # code is not broken


def _plan(product: dict[str, object]) -> tuple[object, ...]:
    keys = (
        "module",
        "role",
        "op",
        "status",
        "rule",
        "reason",
        "flops",
        "shape",
        "operands",
        "notes",
    )
    return tuple(json.dumps(product[key]) for key in keys)


@pytest.mark.parametrize(
    ("out", "policy"),
    [("four", "four.yaml"), pytest.param("eight", "eight.yaml", marks=pytest.mark.full)],
)
def test_every_command_and_training_state_one_plan(out: str, policy: str, place: Path) -> None:
    converted = json.loads((place / out / "report.json").read_text())["products"]
    plan = [*map(_plan, converted)]
    assert len(plan) == 49
    # A converted directory, and its model captured anew without weights.
    for arguments in ((out,), ("model", "--policy", policy, "--length", "16")):
        inspected = json.loads(run("inspect", *arguments, "--json").out)
        assert [*map(_plan, inspected["products"])] == plan
    explained = [
        product
        for module in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn", "lm_head")
        for product in json.loads(run("explain", out, "--site", module, "--json").out)
    ]
    assert {product["status"] for product in explained} == {"quantized", "kept", "unsupported"}
    for product in explained:
        (match,) = (p for p in inspected["products"] if p["site"] == product["site"])
        assert product["status"] == match["status"]
        assert (product["rule"], product["reason"]) == (match["rule"], match["reason"])
        kinds = [operand["kind"] for operand in product["operands"]]
        assert kinds == match["operand_kinds"]
        if match["status"] == "quantized":
            (decider,) = (rule for rule in product["rules"] if rule["matched"])
            assert decider["rule"] == match["rule"]
            for one, two in zip(product["operands"], match["operands"], strict=True):
                assert any(
                    step.startswith(f"quantize to {two['format']}:") for step in one["steps"]
                )
    # What training reports.
    torch._dynamo.reset()
    model = qgraph.compile(load_model(str(place / "model")), policy, codegen=False)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = json.loads(json.dumps(report_json(qgraph.coverage(model))))["products"]
    assert sorted(map(_plan, trained)) == sorted(plan)


def test_filters_pick_by_what_products_are(place: Path) -> None:
    def sites(*arguments: str) -> list[str]:
        return [
            p["site"]
            for p in json.loads(run("inspect", "four", *arguments, "--json").out)["products"]
        ]

    everything = sites()
    assert sites("--product", "dgrad") == [s for s in everything if s.endswith(":dgrad")]
    assert sites("--module", "down_proj") == [s for s in everything if "down_proj" in s]
    four_bits = {*sites("--format", "e2m1")}
    assert (
        four_bits == {*sites("--format", "nvfp4")} == {*everything} - {*sites("--format", "high")}
    )
    assert {*sites("--format", "nvfp4_tile")} == {s for s in four_bits if not s.endswith("wgrad")}


def test_the_same_codes_are_said_to_be_shared(place: Path) -> None:
    (found,) = json.loads(run("explain", "four", "--site", f"{SITE}:fprop", "--json").out)
    weight = found["operands"][1]
    assert (weight["kind"], weight["shared_with"]) == ("weight", [f"{SITE}:dgrad"])


def test_the_graph_s_bytes_are_those_of_its_tensors(place: Path) -> None:
    graph = json.loads(run("inspect", "four", "--layer", SITE, "--json").out)["graph"]
    (weight,) = (n for n in graph if n["op"] == "qgraph.fake_quant" and "16x16" in n["arguments"])
    assert weight["type"] == "f32[32, 64]"
    assert weight["bytes"] == 4 * 32 * 64
    assert weight["packed"] == 32 * 64 // 2 + 32 * 64 // 256  # 4-bit codes, one byte a tile


def test_a_diff_counts_what_changed(place: Path) -> None:
    found = json.loads(run("diff", "four", "eight", "--json").out)
    reports = [json.loads((place / out / "report.json").read_text()) for out in ("four", "eight")]
    differ = sum(
        one["operands"] != two["operands"] or one["status"] != two["status"]
        for one, two in zip(*(report["products"] for report in reports), strict=True)
        if "quantized" in (one["status"], two["status"])
    )
    assert len(found["changed"]) == differ
    for name, shares in found["cost"]["formats"].items():
        assert shares == [report["totals"]["formats"].get(name, 0.0) for report in reports]
    alone = json.loads(run("diff", "four", "--json").out)["cost"]
    before = {name: shares[0] for name, shares in alone["formats"].items()}
    assert before == {"high": pytest.approx(1.0), "e2m1": 0.0}
    assert (alone["quantized"]["a"], alone["operand_bits"]["a"]) == (0.0, 32.0)
    same = json.loads(run("diff", "four", "four", "--json").out)
    assert (same["changed"], same["policy"], same["ops"]) == ([], [], {})


def test_check_holds_a_policy_against_a_model(place: Path) -> None:
    (place / "mine.yaml").write_text(
        "qgraph: 1\nname: mine\nrules:\n  - {match: {module: score}, keep: high}\n"
        "  - {match: {op: linear}, fprop: {input: mxfp8, weight: mxfp8}}\n"
    )
    found = run("check", "mine.yaml", "--model", "model", "--length", "16", "--json", "--strict")
    assert found.code == 1
    result = json.loads(found.out)
    assert [rule["why"] for rule in result["unused_rules"]] == ["matched nothing"]
    assert [warning["name"] for warning in result["warnings"]] == ["head"]
    assert (result["products"], result["quantized"]) == (49, 15)
    assert run("check", "four.yaml", "--strict").code == 0


def test_the_picture_is_an_svg_with_every_step(place: Path) -> None:
    result = run("explain", "four", "--site", f"{SITE}:wgrad", "--svg", "site.svg")
    assert result.code == 0
    from xml.etree import ElementTree

    texts = [text.text for text in ElementTree.parse(place / "site.svg").iter() if text.text]
    assert texts.count("quantize to e2m1/1x16/e4m3/fp32") == texts.count("rotate (rht)") == 2


def test_a_schedule_is_said_to_change_the_plan() -> None:
    policy = load_policy_text(FOUR + "schedule:\n  - {at: 82%, set: {fprop: high}}\n")
    look = Look(source="x", report=Report(policy=policy), inputs={}, before="", after="")
    assert "82%" in " ".join(schedule_note(look))
    plain = replace(look, report=Report(policy=load_policy_text(FOUR)))
    assert [*schedule_note(plain)] == []
