import warnings

import pytest

from qgraph.errors import PolicyError, QGraphWarning
from qgraph.policy import HIGH, check_blocks, check_globs, decide, unused_rules, why_unused
from tests.policy.sites import Site, policy_of, policy_with, stack


def _matched(match: str, sites: list[Site]) -> list[int | None]:
    policy = policy_with(match)
    return [site.block for site in sites if policy.rules[0].match.matches(site)]


def test_first_rule_that_matches_decides() -> None:
    policy = policy_of("""\
  - {match: {module: lm_head}, keep: high}
  - {match: {op: linear}, fprop: {input: fp8}}
  - {match: {}, fprop: {input: fp4, lhs: fp4}}
""")
    assert decide(policy, Site(module="lm_head")).rule is policy.rules[0]
    assert decide(policy, Site()).rule is policy.rules[1]
    matmul = Site(op="matmul", operand_kinds=("lhs", "rhs"))
    assert decide(policy, matmul).rule is policy.rules[2]


def test_operands_come_in_the_order_of_the_site_and_unnamed_ones_stay_high() -> None:
    policy = policy_of("  - {fprop: {weight: fp4}}\n")
    first, second = decide(policy, Site()).operands
    assert (str(first.format), str(second.format)) == ("None", "e2m1/1x16/e4m3/fp32")
    first, second = decide(policy, Site(operand_kinds=("weight", "input"))).operands
    assert (str(first.format), str(second.format)) == ("e2m1/1x16/e4m3/fp32", "None")
    assert decide(policy, Site()).reason == ""


def test_backward_of_a_matmul_takes_each_side_from_its_own_word() -> None:
    policy = policy_of("  - {match: {op: matmul}, dgrad: {grad_output: fp8, lhs: fp4}}\n")
    of_rhs = Site(op="matmul", role="dgrad", operand_kinds=("lhs", "grad_output"))
    of_lhs = Site(op="matmul", role="dgrad", operand_kinds=("grad_output", "rhs"))
    lhs, grad = decide(policy, of_rhs).operands
    assert (str(lhs.format), str(grad.format)) == ("e2m1/1x16/e4m3/fp32", "e4m3/tensor/fp32")
    grad, rhs = decide(policy, of_lhs).operands
    assert str(grad.format) == "e4m3/tensor/fp32"
    assert rhs == HIGH


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Site(module="lm_head"), "kept: rule 1 (module lm_head)"),
        (Site(role="dgrad"), "rule 2 does not name dgrad"),
        (Site(role="wgrad"), "rule 2 leaves input and weight of wgrad high"),
        (Site(op="conv"), "no rule matches"),
        (Site(), ""),
    ],
)
def test_decision_says_why_a_site_stays_high(site: Site, reason: str) -> None:
    policy = policy_of("""\
  - {match: {module: lm_head}, keep: high}
  - {match: {op: linear}, fprop: {input: fp4}, wgrad: {input: high}}
""")
    decision = decide(policy, site)
    assert decision.reason == reason
    assert (decision.operands == (HIGH, HIGH)) == bool(reason)


def test_rotation_alone_is_no_reason_to_stay_high() -> None:
    rotated = "{format: high, transform: h32}"
    policy = policy_of(
        f"  - {{match: {{op: linear}}, fprop: {{input: {rotated}, weight: {rotated}}}}}\n"
    )
    decision = decide(policy, Site())
    assert decision.reason == ""
    assert not decision.operands[0].quantizes
    assert decision.operands[0].changes
    assert not policy.quantizes


@pytest.mark.parametrize(
    ("glob", "module", "matches"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("lm_head", "model.lm_head.dense", False),
        ("head", "lm_head", False),
        ("mlp.up_proj", "model.layers.0.mlp.up_proj", True),
        ("mlp", "model.layers.0.mlp.up_proj", False),
        ("*.mlp.*", "model.layers.0.mlp.up_proj", True),
        ("*up_proj", "model.layers.0.mlp.up_proj", True),
        ("mlp.*", "model.layers.0.mlp.up_proj", False),
        ("model.*.up_proj", "model.layers.0.mlp.up_proj", True),
        ("layers.?.mlp", "layers.1.mlp", True),
        ("layers.?.mlp", "layers.10.mlp", False),
        ("layers.[01].mlp", "layers.1.mlp", True),
        ("*MLP*", "model.mlp", False),
        ("*", "", True),
        ("lm_head", "", False),
    ],
)
def test_module_globs_cross_dots_and_plain_paths_name_the_last_parts(
    glob: str, module: str, matches: bool
) -> None:
    policy = policy_with(f"module: '{glob}'")
    assert policy.rules[0].match.matches(Site(module=module)) is matches


def test_any_of_a_list_matches_and_all_keys_must() -> None:
    match = (
        policy_with("op: [linear, conv], module: ['*.q', '*.k'], role: [fprop, dgrad]")
        .rules[0]
        .match
    )
    assert match.matches(Site(op="conv", module="a.k", role="dgrad"))
    assert not match.matches(Site(op="matmul", module="a.k", role="dgrad"))
    assert not match.matches(Site(op="conv", module="a.v", role="dgrad"))
    assert not match.matches(Site(op="conv", module="a.k", role="wgrad"))


@pytest.mark.parametrize(
    ("share", "total", "blocks"),
    [
        ("15%", 1, 1),
        ("15%", 4, 1),
        ("15%", 12, 2),
        ("15%", 62, 10),
        ("25%", 4, 1),
        ("25%", 12, 3),
        ("26%", 4, 2),
        ("12.5%", 62, 8),
        ("0%", 62, 0),
        ("100%", 12, 12),
        ("0", 4, 0),
        ("3", 4, 3),
        ("3", 62, 3),
    ],
)
def test_first_and_last_blocks_round_a_percent_up(share: str, total: int, blocks: int) -> None:
    every = list(range(total))
    assert _matched(f"last_blocks: {share}", stack(total)) == every[total - blocks :]
    assert _matched(f"first_blocks: {share}", stack(total)) == every[:blocks]


@pytest.mark.parametrize(
    ("blocks", "want"),
    [
        ("[0, 2]", [0, 2]),
        ("3", [3]),
        ("1-3", [1, 2, 3]),
        ("[-1]", [11]),
        ("[-3--1, 0]", [0, 9, 10, 11]),
        ("10--1", [10, 11]),
        ("[9-20]", [9, 10, 11]),
    ],
)
def test_blocks_are_indices_and_ranges_from_either_end(blocks: str, want: list[int]) -> None:
    assert _matched(f"blocks: {blocks}", stack(12)) == want


def test_block_selectors_together_name_the_blocks_of_each() -> None:
    match = "first_blocks: 1, last_blocks: 2, blocks: [4]"
    assert _matched(match, stack(12)) == [0, 4, 10, 11]


def test_each_stack_counts_its_own_blocks() -> None:
    assert _matched("last_blocks: 1", stack(2) + stack(4)) == [1, 3]


@pytest.mark.parametrize("selector", ["blocks: 0-99", "first_blocks: 100%", "last_blocks: 99"])
def test_block_selector_never_matches_a_site_outside_any_block(selector: str) -> None:
    assert _matched(selector, [Site(block=None, block_count=None)]) == []


def test_unused_rules_say_whether_they_matched_nothing() -> None:
    policy = policy_of("""\
  - {match: {op: linear}, fprop: {input: fp4}}
  - {match: {module: mlp.up_proj}, keep: high}
  - {match: {module: lm_haed}, keep: high}
""")
    sites = [Site(), Site(role="dgrad")]
    unused = unused_rules(policy, iter(sites))
    assert unused == policy.rules[1:]
    assert [why_unused(rule, sites) for rule in unused] == [
        "matched only sites that an earlier rule decided",
        "matched nothing",
    ]
    assert unused_rules(policy, []) == policy.rules


@pytest.mark.parametrize(
    ("match", "count", "problem", "fix"),
    [
        (
            "blocks: [0, 40]",
            4,
            "p.yaml:8:26: rules[0].match.blocks[1]: block 40 is out of range",
            "this model has 4 blocks: write 0 to 3",
        ),
        (
            "blocks: 2-5",
            4,
            "p.yaml:8:22: rules[0].match.blocks: block 5 is out of range",
            "this model has 4 blocks: write 0 to 3",
        ),
        (
            "blocks: [-2]",
            1,
            "p.yaml:8:23: rules[0].match.blocks[0]: block -2 is out of range",
            "this model has 1 block: write 0",
        ),
        (
            "blocks: 3--4",
            4,
            "p.yaml:8:22: rules[0].match.blocks: the range 3--4 holds no block",
            "this model has 4 blocks: write the lower block first",
        ),
        (
            "last_blocks: 10",
            4,
            "p.yaml:8:27: rules[0].match.last_blocks: 10 blocks are more than the model has",
            "this model has 4 blocks: write 0 to 4",
        ),
        (
            "first_blocks: 5",
            4,
            "p.yaml:8:28: rules[0].match.first_blocks: 5 blocks are more than the model has",
            "this model has 4 blocks: write 0 to 4",
        ),
    ],
)
def test_block_the_model_lacks_is_an_error(match: str, count: int, problem: str, fix: str) -> None:
    policy = policy_with(match)
    with pytest.raises(PolicyError) as caught:
        check_blocks(policy, iter(stack(count)))
    assert str(caught.value) == f"{problem}\n  fix: {fix}"


@pytest.mark.parametrize("match", ["blocks: [0, 3, -4]", "last_blocks: 4", "first_blocks: 100%"])
def test_blocks_the_model_has_are_no_error(match: str) -> None:
    check_blocks(policy_with(match), stack(4))


def test_blocks_are_held_against_the_longest_stack_the_rule_speaks_about() -> None:
    sites = stack(2) + stack(6) + [Site(op="conv", block=9, block_count=10)]
    check_blocks(policy_with("op: linear, blocks: [5]"), sites)
    with pytest.raises(PolicyError, match="write 0 to 5"):
        check_blocks(policy_with("op: linear, blocks: [6]"), sites)


def test_blocks_are_not_checked_for_a_rule_that_speaks_about_no_block() -> None:
    check_blocks(policy_with("module: lm_head, blocks: [99]"), stack(4))
    check_blocks(policy_with("blocks: [99]"), [Site(block=None, block_count=None)])


def test_a_module_that_no_model_has_is_told_with_the_closest_one() -> None:
    rules = "  - {match: {module: [lm_head, %s]}, fprop: {input: fp4}}\n"
    modules = ["", "layers.0.attn", "layers.0.mlp", "embed"]
    told = r"rules\[0\].match: no module of this model is called 'layers.\*.mpl'; did you mean layers.0.mlp\?"
    with pytest.warns(QGraphWarning, match=told):
        check_globs(policy_of(rules % "layers.*.mpl"), modules)
    with pytest.warns(QGraphWarning, match="'zzz'; `qgraph inspect` lists its modules"):
        check_globs(policy_of(rules % "zzz"), modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_globs(policy_of(rules % '"layers.*.mlp"'), modules)  # a head may have any usual name
