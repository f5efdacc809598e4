"""Policies that start from another one, named parts of a model, and `keep`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import decide, load_policy, load_policy_text
from tests.policy.sites import Site

HEAD = "qgraph: 1\nname: mine\n"
RULES = "rules: [{match: {op: linear}, fprop: {weight: int8/row/fp32}}]\n"


def test_entries_replace_those_of_the_same_name_and_all_else_is_the_base() -> None:
    base = load_policy("nvfp4")
    same = load_policy_text(HEAD + "extends: nvfp4\n")
    assert same.fingerprint() == base.fingerprint()
    assert (same.name, same.source, same.page) == ("mine", base.source, "")
    tiled = "formats: {fp4w: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}}\n"
    changed = load_policy_text(HEAD + "extends: nvfp4\n" + tiled)
    assert changed.fingerprint() == load_policy("nvfp4_no_tiles").fingerprint()
    written_out = load_policy_text(HEAD + "extends: nvfp4\nkeep: [{group: head}]\n")
    assert written_out.fingerprint() == load_policy("nvfp4_no_keep").fingerprint()


def test_a_fault_in_the_base_is_told_at_its_place_in_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(HEAD + RULES.replace("int8/row/fp32", "int88"))
    (tmp_path / "mine.yaml").write_text(HEAD + "extends: base.yaml\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path / "mine.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'base.yaml'}:3:")
    assert "rules[0].fprop.weight: unknown format 'int88'" in str(caught.value)


def test_bases_that_are_not_there_or_go_in_a_circle(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"<string>:3:10: extends: 'nvfp5': no such file or reci"):
        load_policy_text(HEAD + "extends: nvfp5\n")
    (tmp_path / "a.yaml").write_text(HEAD + "extends: b.yaml\n" + RULES)
    (tmp_path / "b.yaml").write_text(HEAD + "extends: a.yaml\n" + RULES)
    with pytest.raises(PolicyError, match="extend one another: is it a circle"):
        load_policy(tmp_path / "a.yaml")


def test_a_group_takes_modules_in_and_out() -> None:
    policy = load_policy_text(
        HEAD
        + "groups: {mine: ['*.mlp.*', '!*.gate']}\n"
        + RULES.replace("op: linear", "group: mine")
    )
    quantized = [
        name
        for name in ("layers.0.mlp.up", "layers.0.mlp.gate", "layers.0.attn.q")
        if not decide(policy, Site(module=name)).reason
    ]
    assert quantized == ["layers.0.mlp.up"]
    with pytest.raises(PolicyError, match="unknown group 'fnn'\n  fix: did you mean 'ffn'"):
        load_policy_text(HEAD + RULES.replace("op: linear", "group: fnn"))


def test_groups_survive_writing_and_change_the_fingerprint_by_what_they_hold() -> None:
    policy = load_policy("fp4_ffn")
    renamed = load_policy_text(
        HEAD + "extends: fp4_ffn\ngroups: {ffn: ['*.other.*']}\n"
    )  # the same rules, other modules
    assert renamed.fingerprint() != policy.fingerprint()
    assert str(policy.rules[1].match) == "op linear or experts, group ffn"


def test_keep_comes_before_the_rules_and_is_numbered_with_them() -> None:
    policy = load_policy_text(HEAD + "keep: [{group: head}, {blocks: [9]}]\n" + RULES)
    assert [rule.number for rule in policy.rules] == [1, 2, 3]
    head = Site(module="lm_head", block=None, block_count=None)
    assert decide(policy, head).reason == "kept: rule 1 (group head)"
    assert decide(policy, Site()).reason == ""
    assert policy.rules[1].key == "keep[1]"


def test_a_format_says_how_it_is_rounded_unless_the_operand_does() -> None:
    formats = "formats: {g: {element: e2m1, scale: fp32, rounding: stochastic}}\n"
    rule = "rules: [{fprop: {input: g, weight: {format: g, rounding: nearest}}}]\n"
    first, second = decide(load_policy_text(HEAD + formats + rule), Site()).operands
    assert (str(first.rounding), str(second.rounding)) == ("stochastic", "nearest")
