import json

import pytest

from qgraph.policy import Policy, dump_policy, load_policy_dict, load_policy_text
from tests.policy.sites import policy_of, policy_with

BASE = """\
qgraph: 1
name: base
source: nowhere
ragged: pad
formats:
  a: {element: e2m1, block: [1, 32], scale: ue8m0}
  b: {element: e4m3, block: row, scale: fp32}
transforms: {t: {hadamard: 16, signs: te, output: bf16}}
rules:
  - {match: {op: linear, module: [x, y], last_blocks: 15%}, keep: high}
  - match: {op: [linear, conv], role: [fprop, wgrad], blocks: [0, 2-3], first_blocks: 1}
    fprop: {input: a, weight: b}
    wgrad:
      input: {format: a, transform: t}
      grad_output: {format: a, transform: t, rounding: stochastic}
"""


def _with(old: str, new: str) -> Policy:
    assert BASE.count(old) >= 1, old
    return load_policy_text(BASE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ragged: pad", "ragged: keep"),
        ("ragged: pad", "ragged: error"),
        ("e2m1", "e3m2"),
        ("[1, 32]", "[1, 16]"),
        ("[1, 32]", "[32, 32]"),
        ("scale: ue8m0", "scale: fp32"),
        ("scale: ue8m0", "scale: ue8m0, scale_rounding: floor"),
        ("block: row", "block: tensor"),
        ("signs: te", "signs: none"),
        ("hadamard: 16, signs: te", "hadamard: 32"),
        ("output: bf16", "output: fp32"),
        ("rounding: stochastic", "rounding: nearest"),
        ("input: {format: a,", "input: {format: high,"),
        ("weight: b", "weight: a"),
        (", weight: b", ""),
        ("module: [x, y]", "module: [x]"),
        ("module: [x, y], ", ""),
        ("op: linear, ", ""),
        ("op: [linear, conv]", "op: [linear]"),
        ("role: [fprop, wgrad], ", ""),
        ("15%", "16%"),
        ("15%", "1"),
        ("first_blocks: 1", "first_blocks: 1%"),
        ("first_blocks: 1", "last_blocks: 1"),
        ("2-3", "2-4"),
        ("0, 2-3", "2-3"),
    ],
)
def test_fingerprint_changes_with_all_that_changes_numbers(old: str, new: str) -> None:
    assert _with(old, new).fingerprint() != load_policy_text(BASE).fingerprint()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: base", "name: other"),
        ("source: nowhere\n", ""),
        ("ragged: pad\n", "# a comment\n"),
        ("ragged: pad\n", "coverage: {min_flops: 62.5%}\n"),
        ("scale: ue8m0", "scale: ue8m0, scale_rounding: rceil"),
        (", output: bf16", ""),
        ("  b: {", "  unused: {element: int8, block: row, scale: fp32}\n  b: {"),
        ("op: linear", "op: [linear]"),
        ("[x, y]", "[y, x]"),
        ("[linear, conv]", "[conv, linear]"),
        ("[fprop, wgrad]", "[wgrad, fprop]"),
        ("input: a, weight: b", "weight: b, input: {format: a, rounding: nearest}"),
        ("15%", "15.0%"),
    ],
)
def test_fingerprint_does_not_change_with_names_order_and_defaults(old: str, new: str) -> None:
    assert _with(old, new).fingerprint() == load_policy_text(BASE).fingerprint()


def test_order_of_rules_changes_the_fingerprint() -> None:
    keep, quantize = "  - {match: {module: x}, keep: high}\n", "  - {fprop: {input: fp4}}\n"
    assert policy_of(keep + quantize).fingerprint() != policy_of(quantize + keep).fingerprint()


def test_high_operand_is_the_same_as_an_unnamed_one() -> None:
    named = policy_of("  - {fprop: {input: fp4, weight: high}, dgrad: {weight: high}}\n")
    assert named.fingerprint() == policy_of("  - {fprop: {input: fp4}}\n").fingerprint()


def test_policy_survives_dump_and_load_and_json() -> None:
    policy = load_policy_text(BASE)
    again = load_policy_text(dump_policy(policy))
    assert again.fingerprint() == policy.fingerprint()
    assert again.to_dict() == policy.to_dict()
    assert [rule.match for rule in again.rules] == [rule.match for rule in policy.rules]
    through_json = load_policy_dict(json.loads(json.dumps(policy.to_dict())))
    assert through_json.to_dict() == policy.to_dict()
    assert (again.name, again.source) == ("base", "nowhere")


@pytest.mark.parametrize("name", ["yes", "1", "2020-01-01", "1.5", "null", "a: b", "é 😀 #", "- x"])
def test_name_that_looks_like_something_else_survives(name: str) -> None:
    policy = load_policy_text(
        BASE.replace("name: base", f"name: {json.dumps(name, ensure_ascii=False)}")
    )
    assert load_policy_text(dump_policy(policy)).name == name


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("{match: {module: lm_head}, keep: high}", "rule 1 (module lm_head): keep high"),
        (
            "{match: {op: linear, last_blocks: 15%}, keep: high}",
            "rule 1 (op linear, last_blocks 15%): keep high",
        ),
        (
            "{match: {module: [a, b, c, d], role: fprop, blocks: [1, 2-3]}, keep: high}",
            "rule 1 (module a or 3 others, role fprop, blocks 1 or 2-3): keep high",
        ),
        (
            (
                "{match: {op: [conv, linear], first_blocks: 12.5%}, "
                "dgrad: {weight: fp8}, fprop: {input: fp4}}"
            ),
            "rule 1 (op linear or conv, first_blocks 12.5%): quantize fprop, dgrad",
        ),
        ("{fprop: {input: fp4}}", "rule 1 (everything): quantize fprop"),
    ],
)
def test_rule_reads_as_one_line(rule: str, text: str) -> None:
    policy = policy_of(f"  - {rule}\n  - {{fprop: {{input: fp4}}}}\n")
    assert policy.rules[0].text == text


def test_policy_knows_whether_it_quantizes_and_rounds_at_random() -> None:
    assert policy_with("op: linear").quantizes
    assert not policy_with("op: linear").stochastic
    assert load_policy_text(BASE).stochastic


@pytest.mark.parametrize(
    ("says", "random"),
    [
        ("stash: [{format: a, rounding: stochastic}]", True),
        ("stash: [{match: {op: conv}, format: a}, {format: eden}]", True),
        ("stash: [{format: a, rounding: up}]", False),
        ("optimizer: {exp_avg: {format: a, rounding: stochastic}}", True),
        ("optimizer: {exp_avg: a}", False),
        ("parameters: {storage: bf16, compute: bf16, rounding: stochastic}", True),
        (
            "parameters: {storage: bf16, compute: bf16, master: {format: a, rounding: stochastic}}",
            True,
        ),
        ("parameters: {storage: bf16, compute: bf16, master: a}", False),
    ],
)
def test_what_waits_in_memory_may_be_rounded_at_random_too(says: str, random: bool) -> None:
    formats = BASE[BASE.index("formats") : BASE.index("transforms")]
    eden = "  eden: {element: e2m1, block: [1, 16], scale: e4m3, scale_rounding: stochastic}"
    policy = load_policy_text(
        f"qgraph: 1\nname: waits\n{formats}{eden}\n{says}\nrules: [{{keep: high}}]\n"
    )
    assert policy.stochastic == random


def test_a_policy_with_another_value_is_as_one_read_with_it() -> None:
    policy = load_policy_text(BASE).but(ragged="keep")
    assert policy.fingerprint() == _with("ragged: pad", "ragged: keep").fingerprint()
    with pytest.raises(AssertionError, match="raged"):
        policy.but(raged="keep")


def test_rule_knows_its_place() -> None:
    policy = load_policy_text(BASE, file="base.yaml")
    assert [str(rule.place) for rule in policy.rules] == ["base.yaml:10:5", "base.yaml:11:5"]
    assert [rule.number for rule in policy.rules] == [1, 2]
    assert policy.path == "base.yaml"
