"""Why a rule decides a site or does not: the deciding rule is `decide`'s, and each other says why."""

from __future__ import annotations

import pytest

from qgraph.policy import decide, load_policy, load_policy_text, recipe_names
from qgraph.policy.trial import try_rules
from tests.policy.sites import Site

SITES = [
    Site(op=op, module=module, role=role, block=block, block_count=count, operand_kinds=kinds)
    for op, kinds in (("linear", ("input", "weight")), ("qk", ("lhs", "rhs")))
    for module, block, count in (("lm_head", None, None), ("model.layers.3.mlp.up_proj", 3, 4))
    for role in ("fprop", "wgrad")
    if (op, role) != ("qk", "wgrad")
]


@pytest.mark.parametrize("name", recipe_names())
def test_the_rule_that_decides_is_the_last_tried(name: str) -> None:
    policy = load_policy(name)
    for site in SITES:
        trials = [*try_rules(policy, site)]
        decided = decide(policy, site).rule
        assert [trial.rule for trial in trials if trial.matched] == ([decided] if decided else [])
        assert len(trials) == (decided.number if decided else len(policy.rules))
        assert all(trial.why and trial.why != "it does not match" for trial in trials)


WHY = {
    "op: conv": "the op is linear",
    "module: score": "another module",
    "module: [score, head]": "none of its 2 modules matches",
    "group: head": "the module is in no such group",
    "role: dgrad": "the product is fprop",
    "blocks: [0]": "it is block 3 of 0 to 3",
    "op: conv, role: dgrad": "the op is linear; the product is fprop",
}


@pytest.mark.parametrize("match", WHY)
def test_what_does_not_match_is_said(match: str) -> None:
    site = SITES[2]
    assert (site.module, site.role) == ("model.layers.3.mlp.up_proj", "fprop")
    rules = f"rules:\n  - {{match: {{{match}}}, keep: high}}\n  - {{match: {{}}, fprop: {{lhs: mxfp8}}}}\n"
    first, second = try_rules(load_policy_text(f"qgraph: 1\nname: mine\n{rules}"), site)
    assert (first.matched, first.why) == (False, WHY[match])
    assert (second.matched, second.why) == (True, "it decides")
