"""Choosing formats for a budget: the exact optimum, and the policy that says it."""

from __future__ import annotations

import itertools
import random

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import decide
from qgraph.search.allocate import Option, allocate
from qgraph.search.candidates import (
    HIGH_CANDIDATE,
    Candidate,
    check_measure,
    parse_candidates,
)
from qgraph.search.compose import compose_policy
from tests.policy.sites import Site


@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_is_that_of_trying_everything(seed: int) -> None:
    draw = random.Random(seed)
    size = 10.0 ** draw.randint(-12, 6)  # errors and costs come in any unit
    products = [
        [
            Option(error=size * draw.random() ** 4, cost=draw.randint(0, 8) / 7)
            for _ in range(draw.randint(1, 4))
        ]
        for _ in range(6)
    ]
    least = sum(min(choice.cost for choice in own) for own in products)
    budget = least + draw.random() * 3
    best = allocate(products, budget)
    every = (
        sum(choice.error for choice in taken)
        for taken in itertools.product(*products)
        if sum(choice.cost for choice in taken) <= budget + 1e-12
    )
    assert best.error == pytest.approx(min(every), rel=1e-6)
    assert best.cost <= budget + 1e-9
    taken = [own[i] for own, i in zip(products, best.taken, strict=True)]
    assert best.error == pytest.approx(sum(choice.error for choice in taken))


def test_a_budget_below_the_least_is_told() -> None:
    with pytest.raises(PolicyError, match=r"the least that can be had is 2"):
        allocate([[Option(error=0, cost=1)], [Option(error=0, cost=1)]], 1.5)


def test_candidates_are_read() -> None:
    found = parse_candidates("nvfp4, nvfp4 sr rht, list(-1,0,1)/row/fp32")
    assert [c.name for c in found] == ["nvfp4", "nvfp4 rht sr", "list(-1,0,1)/row/fp32"]
    plain, both, _ = found
    assert plain.bits == 4.5
    drawn, still = both.operand("grad_output"), both.operand("input")
    assert (drawn.rounding.random, still.rounding.random) == (True, False)
    assert drawn.transform == still.transform is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvfp", "did you mean 'nvfp4'"),
        ("nvfp4 rth", "unknown word 'rth'"),
        ("nvfp4, nvfp4", "it is there twice"),
        ("nvfp4,", "unknown format ''"),
    ],
)
def test_wrong_candidates_are_told(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_candidates(text)


def test_an_unknown_measure_is_told() -> None:
    assert check_measure("fisher") == "fisher"
    with pytest.raises(PolicyError, match="use one of: gradient, loss"):
        check_measure("gradients")


@pytest.mark.parametrize("seed", range(20))
def test_the_policy_says_what_was_chosen(seed: int) -> None:
    draw = random.Random(seed)
    kinds = {
        "fprop": ("input", "weight"), "dgrad": ("grad_output", "weight"), "wgrad": ("grad_output", "input"),
    }  # fmt: skip
    # Paths that a careless pattern would mix up: ends of one another, numbers, stacks in stacks.
    leaves = ("mlp.up", "up", "attn.q", "mlp.experts.1.up")
    modules: list[tuple[str, int | None]] = [
        (f"model.layers.{i}.{leaf}", i) for i in range(12) for leaf in leaves
    ]
    modules += [("up", None), ("lm_head", None), ("encoder.lm_head", None), ("", None)]
    sites = [
        Site(op="linear", module=module, role=role, block=block,
             block_count=None if block is None else 12, operand_kinds=kinds[role])
        for module, block in modules for role in kinds
    ]  # fmt: skip
    pool: tuple[Candidate, ...] = (HIGH_CANDIDATE, *parse_candidates("nvfp4, nvfp4 sr rht, mxfp8"))
    by_leaf = {leaf: draw.choice(pool) for leaf in leaves}
    chosen = {
        i: by_leaf.get(site.module.split(".", 3)[-1] if draw.random() < 0.9 else "", draw.choice(pool))
        for i, site in enumerate(sites) if draw.random() < 0.95
    }  # fmt: skip
    text, policy = compose_policy("mine", "a test", sites, chosen)
    for i, site in enumerate(sites):
        wanted = chosen.get(i, HIGH_CANDIDATE).operands(site.operand_kinds)
        found = decide(policy, site).operands
        assert (found if any(o.changes for o in found) else ()) == wanted
    assert "name: mine" in text
    assert text.count("keep") <= 3  # what no rule names stays high


def test_equal_blocks_are_one_line() -> None:
    sites = [
        Site(op="linear", module=f"model.layers.{i}.up", role="fprop", block=i, block_count=9)
        for i in range(9)
    ]
    (candidate,) = parse_candidates("nvfp4")
    text, _ = compose_policy("mine", "", sites, dict.fromkeys(range(9), candidate))
    assert "module: [model.layers.*.up]" in text
    text, policy = compose_policy("mine", "", sites, {})
    assert not policy.quantizes
