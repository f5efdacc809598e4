"""Choices that papers advise against are found, each alone, and the recipes that follow them are clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qgraph.policy
from qgraph.policy import lint, load_policy, load_policy_text, policy_json_schema, recipe_names
from qgraph.policy.lint_tokens import lint_tokens

KEPT = "  - {match: {module: lm_head}, keep: high}\n  - {match: {last_blocks: 1}, keep: high}\n"
RULES = "  - match: {{op: linear}}\n    {}\n"
FINE = (
    "fprop: {input: nvfp4, weight: nvfp4_tile}, dgrad: {weight: nvfp4_tile, grad_output: "
    "{format: nvfp4, rounding: stochastic}}"
)
# What a policy does wrong, its rules, and the advice it gets.
WRONG = {
    "stochastic-forward": KEPT
    + RULES.format("fprop: {input: {format: mxfp8, rounding: stochastic}}"),
    "gradient-scale": KEPT
    + RULES.format("dgrad: {grad_output: {format: e2m1/1x16/e4m3, rounding: stochastic}}"),
    "nearest-gradient": KEPT + RULES.format("wgrad: {grad_output: nvfp4}"),
    "two-weights": KEPT + RULES.format("fprop: {weight: nvfp4}\n    dgrad: {weight: nvfp4}"),
    "head": RULES.format("fprop: {input: mxfp8}"),
    "last-blocks": "  - {match: {module: lm_head}, keep: high}\n"
    + RULES.format("fprop: {input: nvfp4, weight: nvfp4_tile}"),
    "unreachable": "  - {match: {}, fprop: {lhs: mxfp8}}\n  - {match: {op: linear}, keep: high}\n",
}


def _policy(rules: str, more: str = "") -> qgraph.policy.Policy:
    return load_policy_text(f"qgraph: 1\nname: mine\n{more}rules:\n{rules}", file="mine.yaml")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_choice_is_told_with_its_place_and_source(name: str) -> None:
    (finding,) = lint(_policy(WRONG[name]))
    assert finding.name == name
    assert "mine.yaml:" in finding.place
    assert finding.fix
    assert finding.source.startswith("arXiv 25") or name == "unreachable"


def test_a_right_choice_is_not() -> None:
    fine = FINE.replace(", dgrad", "\n    dgrad")
    assert lint(_policy(KEPT + RULES.format(fine))) == []


def test_a_coarse_second_moment_is_told() -> None:
    states = "optimizer: {exp_avg: int8/row/fp32, exp_avg_sq: int8/tensor/fp32}\n"
    (finding,) = lint(_policy("  - {match: {}, keep: high}\n", states))
    assert (finding.name, finding.place) == ("second-moment", "optimizer.exp_avg_sq")
    assert finding.source == "arXiv 2407.11722"


def test_recipes_follow_the_papers_except_the_naive_ones() -> None:
    found = {name: {finding.name for finding in lint(load_policy(name))} for name in recipe_names()}
    naive = {"nearest-gradient", "two-weights", "last-blocks"}
    for name in ("nvfp4", "mxfp8", "fp8", "int8", "high"):
        assert found[name] == set(), name
    assert found["nvfp4_naive"] == found["mxfp4"] == naive


def test_the_head_is_the_model_s_own() -> None:
    policy = _policy(KEPT + RULES.format("fprop: {input: mxfp8}"))
    assert [finding.name for finding in lint(policy, head="score")] == ["head"]


def test_tokens_past_the_critical_size_are_told() -> None:
    # A billion parameters in e2m1 with blocks of 128: 0.4T tokens, by the paper's own numbers.
    policy = _policy(KEPT + RULES.format("fprop: {weight: e2m1/1x128/fp32}"))
    assert lint_tokens(policy, 1e9, 0.35e12) == []
    (finding,) = lint_tokens(policy, 1e9, 0.45e12)
    assert "450B tokens are past the critical 393B" in finding.problem
    assert finding.source == "arXiv 2501.02423"


def test_the_schema_file_is_the_schema_and_recipes_name_it() -> None:
    folder = Path(qgraph.policy.__file__).parent
    shipped = json.loads((folder / "policy.schema.json").read_text(encoding="utf-8"))
    # On a difference: qgraph check --schema > qgraph/policy/policy.schema.json
    assert shipped == policy_json_schema()
    for recipe in recipe_names():
        first, *_ = (folder / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
        assert first == "# yaml-language-server: $schema=../policy.schema.json"
        assert (folder / "recipes" / "../policy.schema.json").resolve().is_file()
