"""Schedules and monitors of a policy: when switches are on, what they make of the rules, and faults."""

from __future__ import annotations

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import (
    Policy,
    check_blocks,
    check_run,
    decide,
    dump_policy,
    load_policy,
    load_policy_text,
    stage,
)
from tests.policy.sites import Site, stack

BASE = """\
qgraph: 1
name: p
formats: {fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}}
rules:
  - {match: {module: lm_head}, keep: high}
  - match: {op: linear}
    name: body
    fprop: {input: fp4, weight: fp4}
    dgrad: {grad_output: fp4, weight: fp4}
    wgrad: {input: fp4, grad_output: fp4}
"""


def with_schedule(*entries: str, monitors: str = "") -> Policy:
    lines = "".join(f"  - {{{entry}}}\n" for entry in entries)
    return load_policy_text(f"{BASE}schedule:\n{lines}{monitors}", file="p.yaml")


def formats(policy: Policy, role: str, module: str = "model.layers.0.mlp") -> list[str]:
    kinds = {
        "fprop": ("input", "weight"),
        "dgrad": ("grad_output", "weight"),
        "wgrad": ("grad_output", "input"),
    }
    site = Site(module=module, role=role, operand_kinds=kinds[role])
    return [
        str(operand.format or "high").split("/")[0] for operand in decide(policy, site).operands
    ]


@pytest.mark.parametrize(
    ("entry", "total", "on"),
    [
        ("at: 3, set: high", 6, [3, 4, 5]),
        ("at: 50%, set: high", 7, [4, 5, 6]),  # a share rounds up
        ("at: 82%, set: high", 50, [*range(41, 50)]),
        ("at: 0, until: 2, set: high", 5, [0, 1]),
        ("at: 1, for: 2, set: high", 5, [1, 2]),
        ("every: 3, for: 1, set: high", 8, [3, 6]),
        ("at: 1, every: 3, for: 2, until: 6, set: high", 9, [1, 2, 4, 5]),
    ],
)
def test_a_switch_is_on_when_it_says(entry: str, total: int, on: list[int]) -> None:
    (switch,) = with_schedule(entry).schedule
    assert [done for done in range(total) if switch.is_on(done, total)] == on


def test_a_switch_on_a_monitor_lasts_from_where_it_tripped() -> None:
    monitors = "monitors: [{watch: loss_spike}]\n"
    (switch,) = with_schedule("on: loss_spike, for: 2, set: high", monitors=monitors).schedule
    assert [done for done in range(6) if switch.is_on(done, 6, 3)] == [3, 4]
    assert not any(switch.is_on(done, 6, None) for done in range(6))


def test_fprop_alone_goes_high() -> None:
    policy = with_schedule("at: 82%, set: {fprop: high}")
    late = stage(policy, [1])
    assert [formats(late, role) for role in ("fprop", "dgrad", "wgrad")] == [
        ["high", "high"], ["e2m1", "e2m1"], ["e2m1", "e2m1"],
    ]  # fmt: skip
    assert decide(late, Site()).reason == "schedule[0] sets fprop high"
    assert stage(policy, []).fingerprint() == load_policy_text(BASE).fingerprint()
    assert late.fingerprint() != stage(policy, []).fingerprint()
    assert policy.fingerprint() != load_policy_text(BASE).fingerprint()


def test_a_switch_may_speak_of_some_sites_and_of_other_formats() -> None:
    late = stage(
        with_schedule('at: 1, match: {module: "*.mlp"}, set: {wgrad: {input: mxfp8}}'), [1]
    )
    assert formats(late, "wgrad") == ["high", "e4m3"]  # the operand it does not name is high
    assert formats(late, "fprop") == ["e2m1", "e2m1"]
    assert formats(late, "wgrad", "model.layers.0.attn") == ["e2m1", "e2m1"]


def test_the_later_of_two_switches_decides() -> None:
    policy = with_schedule("at: 1, set: high", "at: 2, set: {fprop: {weight: mxfp8}}")
    both = stage(policy, [1, 2])
    assert formats(both, "fprop") == ["high", "e4m3"]
    assert formats(both, "dgrad") == ["high", "high"]


def test_a_kept_site_is_switched_only_by_its_rule_s_own_name() -> None:
    everything = stage(with_schedule("at: 1, set: {fprop: {weight: mxfp8}}"), [1])
    assert formats(everything, "fprop", "lm_head") == ["high", "high"]
    named = stage(with_schedule("at: 1, rule: 1, set: {fprop: {weight: mxfp8}}"), [1])
    assert formats(named, "fprop", "lm_head") == ["high", "e4m3"]
    assert formats(named, "fprop") == ["e2m1", "e2m1"]
    assert with_schedule("at: 1, rule: [body], set: high").schedule[0].rules == (2,)


def test_a_scheduled_policy_is_the_same_after_writing_and_reading() -> None:
    policy = with_schedule(
        "at: 10, for: 5, match: {blocks: [0]}, set: {fprop: {input: mxfp8}, wgrad: high}",
        "every: 20%, for: 7, set: high",
        "on: plateau, patience: 30, improvement: 0.5%, set: high",
        "on: sharp, set: high",
        monitors="monitors: [{watch: logit_sharpness, name: sharp, above: 50%, action: stop}]\n",
    )
    again = load_policy_text(dump_policy(policy))
    assert again.fingerprint() == policy.fingerprint()
    assert [s.text for s in again.schedule] == [s.text for s in policy.schedule]
    assert again.monitors[0].above == 0.5


def test_blocks_of_a_switch_are_held_against_the_model() -> None:
    policy = with_schedule("at: 1, match: {blocks: [9]}, set: high")
    with pytest.raises(
        PolicyError, match=r"p.yaml:12:\d+: schedule\[0\].match.blocks\[0\]: block 9"
    ):
        check_blocks(policy, stack(4))


# Entry, then what is said after `p.yaml:12:` and the fix.
FAULTS = {
    "no time": ("set: high", "5: schedule[0]: it does not say when",
                "write at: 82%, every: 500 or on: plateau"),
    "no set": ("at: 1", "5: schedule[0]: the key 'set' is missing", "write set: {fprop: high}"),
    "set to a word": ("at: 1, set: hihg", "18: schedule[0].set: unknown 'hihg'",
                      "write high, or operands as in a rule: {input: fp4}"),
    "an unknown format": ("at: 1, set: {fprop: {input: fp5}}",
                          "34: schedule[0].set.fprop.input: unknown format 'fp5'",
                          "did you mean 'fp4'?"),
    "an unknown key": ("att: 1, set: high", "6: schedule[0]: unknown key 'att'", "did you mean 'at'?"),
    "past the end": ("at: 100%, set: high", "10: schedule[0].at: '100%' is past the end of the run",
                     "write a number of steps such as 1000, or a percent of the run such as 82%"),
    "no time of a run": ("at: soon, set: high", "10: schedule[0].at: 'soon' is no time of a run",
                         "write a number of steps such as 1000, or a percent of the run such as 82%"),
    "an unknown rule": ("at: 1, rule: 3, set: high", "19: schedule[0].rule: unknown rule '3'",
                        "use one of: 1, 2, body"),
    "an unknown rule's name": ("at: 1, rule: bdy, set: high", "19: schedule[0].rule: unknown rule 'bdy'",
                               "did you mean 'body'?"),
    "an unknown monitor": ("on: platau, set: high", "10: schedule[0].on: there is no monitor 'platau'",
                           "did you mean 'plateau'?"),
    "on and at": ("on: plateau, at: 1, set: high", "19: schedule[0].at: on and at exclude each other",
                  "remove one of them"),
    "for and until": ("at: 1, for: 5, until: 50%, set: high",
                      "28: schedule[0].until: for and until exclude each other", "remove one of them"),
    "a cycle without length": ("every: 9, set: high", "13: schedule[0].every: it does not say for how long",
                               "write for: 100"),
    "nothing to change": ("at: 1, set: {fprop: {input: fp4, weight: fp4}}",
                          "18: schedule[0].set: it changes nothing: the rules say the same of fprop",
                          "set another product, or remove the switch"),
    "an unknown transform": (
        "at: 1, set: {wgrad: {input: {format: fp4, transform: rht}}}",
        "59: schedule[0].set.wgrad.input.transform: unknown transform 'rht'",
        "declare it under transforms:"),
    "patience without a plateau": ("at: 1, patience: 3, set: high",
                                   "13: schedule[0].patience: patience belongs to on: plateau",
                                   "write on: plateau, or remove it"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_wrong_switch_is_told_with_its_place(case: str) -> None:
    entry, problem, fix = FAULTS[case]
    with pytest.raises(PolicyError) as caught:
        with_schedule(entry)
    assert str(caught.value) == f"p.yaml:12:{problem}\n  fix: {fix}"


def test_a_switch_may_set_back_what_another_changed() -> None:
    back = "at: 2, set: {fprop: {input: fp4, weight: fp4}}"
    policy = with_schedule("at: 1, set: {fprop: high}", back)
    assert stage(policy, [1, 2]).fingerprint() == stage(policy, []).fingerprint()
    with pytest.raises(PolicyError, match="it changes nothing"):
        with_schedule("at: 1, set: {dgrad: high}", back)


def test_switches_in_the_wrong_order_are_told() -> None:
    with pytest.raises(PolicyError) as caught:
        with_schedule("at: 90%, set: high", "at: 50%, set: {fprop: high}")
    assert str(caught.value) == (
        "p.yaml:13:10: schedule[1].at: 50% comes after 90%\n"
        "  fix: write switches in the order of their steps"
    )


# What only the length of the run, 100 steps, shows.
RUNS = {
    "past the end": (
        ["at: 100, set: high"],
        "12:10: schedule[0].at: 100 is past the end: the run has 100 steps",
        "write at: below 100, or a percent",
    ),
    "steps after a share": (
        ["at: 90%, set: high", "at: 50, set: {fprop: high}"],
        "13:10: schedule[1].at: it begins after 50 steps, the switch above it after 90",
        "write switches in the order of their steps",
    ),
    "ends before it begins": (
        ["at: 50%, until: 50, set: high"],
        "12:22: schedule[0].until: it ends after 50 steps and begins after 50",
        "write a later until, or an earlier at",
    ),
    "always on": (
        ["every: 10%, for: 10, set: high"],
        "12:23: schedule[0].for: 10 of every 10 steps is always",
        "write for: less than every",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_a_schedule_is_held_against_the_length_of_the_run(case: str) -> None:
    entries, problem, fix = RUNS[case]
    policy = with_schedule(*entries)
    with pytest.raises(PolicyError) as caught:
        check_run(policy, 100)
    assert str(caught.value) == f"p.yaml:{problem}\n  fix: {fix}"
    check_run(load_policy("nvfp4"), 1)


MONITORS = {
    "an unknown number": ("watch: loss", "11:20: monitors[0].watch: unknown 'loss'",
                          "use one of: loss_spike, logit_sharpness, wgrad_error"),
    "no limit": ("watch: loss_spike, above: x", "11:39: monitors[0].above: 'x' is no limit",
                 "write a number such as 7 or 0.5, or a percent"),
    "a window of nothing": ("watch: wgrad_error, window: 5",
                            "11:33: monitors[0].window: wgrad_error has no window", "remove it"),
    "twice": ("watch: loss_spike}, {watch: loss_spike", "11:33: monitors[1]: a second 'loss_spike'",
              "give it a name of its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", MONITORS)
def test_a_wrong_monitor_is_told_with_its_place(case: str) -> None:
    entry, problem, fix = MONITORS[case]
    with pytest.raises(PolicyError) as caught:
        load_policy_text(f"{BASE}monitors: [{{{entry}}}]\n", file="p.yaml")
    assert str(caught.value) == f"p.yaml:{problem}\n  fix: {fix}"


def test_a_monitor_of_wgrad_needs_a_quantized_wgrad() -> None:
    text = BASE.replace("    wgrad: {input: fp4, grad_output: fp4}\n", "")
    with pytest.raises(PolicyError, match="no rule quantizes wgrad: there is no error to watch"):
        load_policy_text(f"{text}monitors: [{{watch: wgrad_error}}]\n")
