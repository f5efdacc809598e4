"""The keys functions and calibrate: what they load to, what they say, and what their faults say."""

from __future__ import annotations

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import (
    CalibrationStep,
    FunctionRule,
    dump_policy,
    load_policy,
    load_policy_text,
)

HEAD = "qgraph: 1\nname: p\nextends: nvfp4\n"  # three lines


def test_functions_are_rules_in_file_order() -> None:
    policy = load_policy_text(
        HEAD + "functions:\n  - {modules: ['model.layers.0.*', head], softmax: two_pass}\n"
        "  - {softmax: two_pass}\n"
    )
    first, second = policy.functions
    assert first == FunctionRule(
        modules=("model.layers.0.*", "head"), function="softmax", use="two_pass"
    )
    assert second == FunctionRule(modules=("*",), function="softmax", use="two_pass")
    modules = ("", "model.layers.0.attn", "model.layers.1.attn", "lm.head")
    assert [first.names(module) for module in modules] == [False, True, False, True]
    assert all(second.names(module) for module in modules)
    assert policy.lines()[-2:] == [
        "functions: softmax two_pass in model.layers.0.* or head",
        "functions: softmax two_pass",
    ]


def test_a_calibration_is_steps_in_file_order() -> None:
    policy = load_policy_text(
        HEAD + "calibrate:\n  - clip: {steps: 5, lowest: 0.25, modules: '*.mlp.*'}\n"
        "  - clip: {lowest: 75%}\n  - clip: {}\n"
    )
    assert policy.calibrate == (
        CalibrationStep(method="clip", modules=("*.mlp.*",), options={"steps": 5, "lowest": 0.25}),
        CalibrationStep(method="clip", options={"steps": 20, "lowest": 0.75}),
        CalibrationStep(method="clip", options={"steps": 20, "lowest": 0.5}),
    )
    assert policy.lines()[-3:] == [
        "calibrate[0]: clip in *.mlp.* (steps 5, lowest 0.25)",
        "calibrate[1]: clip (steps 20, lowest 0.75)",
        "calibrate[2]: clip (steps 20, lowest 0.5)",
    ]


def test_a_policy_without_these_keys_has_none() -> None:
    policy = load_policy("nvfp4")
    assert (policy.functions, policy.calibrate) == ((), ())
    assert not {"functions", "calibrate"} & set(policy.to_dict())


@pytest.mark.parametrize(
    "text",
    [
        "functions: [{softmax: two_pass}]\n",
        "functions: [{modules: a, softmax: two_pass}]\n",
        "functions: [{modules: [a, b], softmax: two_pass}, {softmax: two_pass}]\n",
        "calibrate: [{clip: {}}]\n",
        "calibrate: [{clip: {steps: 2, lowest: 12.34%}}, {clip: {modules: [a, 'b.*']}}]\n",
        "calibrate: [{clip: {}}]\nfunctions: [{softmax: two_pass}]\n",
    ],
)
def test_a_policy_and_its_dump_are_one(text: str) -> None:
    policy = load_policy_text(HEAD + text)
    again = load_policy_text(dump_policy(policy))
    assert again.functions == policy.functions
    assert again.calibrate == policy.calibrate
    assert again.fingerprint() == policy.fingerprint()
    assert policy.fingerprint() != load_policy("nvfp4").fingerprint()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("functions: [{softmax: two_pass}]", "functions: [{modules: '*', softmax: two_pass}]", True),
        ("functions: [{modules: [a, b], softmax: two_pass}]",
         "functions: [{modules: [b, a, a], softmax: two_pass}]", True),
        ("functions: [{softmax: two_pass}]", "functions: [{modules: a, softmax: two_pass}]", False),
        ("calibrate: [{clip: {}}]", "calibrate: [{clip: {steps: 20, lowest: 50%}}]", True),
        ("calibrate: [{clip: {}}]", "calibrate: [{clip: {steps: 21}}]", False),
        ("calibrate: [{clip: {}}]", "calibrate: [{clip: {lowest: 0.51}}]", False),
        ("calibrate: [{clip: {}}]", "calibrate: [{clip: {modules: a}}]", False),
        ("calibrate: [{clip: {}}]", "calibrate: [{clip: {}}, {clip: {}}]", False),
    ],
)  # fmt: skip
def test_the_fingerprint_holds_what_changes_numbers(one: str, other: str, same: bool) -> None:
    first, second = (load_policy_text(f"{HEAD}{text}\n").fingerprint() for text in (one, other))
    assert (first == second) is same


def test_another_function_is_more_than_policy_high_and_a_calibration_of_nothing_is_not() -> None:
    head = "qgraph: 1\nname: p\nrules: [{keep: high}]\n"
    assert not load_policy_text(head + "functions: [{softmax: two_pass}]\n").quantizes
    with pytest.raises(PolicyError, match="no rule quantizes anything"):
        load_policy_text(head + "calibrate: [{clip: {}}]\n")


# What is written, what is said of it after p.yaml:4:, and the fix.
FAULTS = {
    "an unknown function": ("functions: [{sofmax: two_pass}]",
                            "14: functions[0]: unknown key 'sofmax'", "did you mean 'softmax'?"),
    "an unknown use": ("functions: [{softmax: twopass}]",
                       "23: functions[0].softmax: unknown 'twopass'", "did you mean 'two_pass'?"),
    "no function": ("functions: [{modules: a}]", "13: functions[0]: it names no function",
                    "write softmax: two_pass"),
    "no functions": ("functions: []", "12: functions: it is empty",
                     "write functions: [{softmax: two_pass}]"),
    "functions as a mapping": ("functions: {softmax: two_pass}",
                               "12: functions: a mapping is not a list",
                               "write functions: [{softmax: two_pass}]"),
    "a function as a word": ("functions: [softmax]", "13: functions[0]: 'softmax' is not a mapping",
                             "write {softmax: two_pass}"),
    "modules with a comma": ("functions: [{modules: 'a,b', softmax: two_pass}]",
                             "23: functions[0].modules: 'a,b' has a comma",
                             "write a list: [lm_head, score]"),
    "no modules": ("functions: [{modules: '', softmax: two_pass}]",
                   "23: functions[0].modules: the module path is empty", "write modules: lm_head"),
    "an unknown method": ("calibrate: [{clipp: {}}]", "14: calibrate[0]: unknown key 'clipp'",
                          "did you mean 'clip'?"),
    "no method": ("calibrate: [{}]", "13: calibrate[0]: it names no method",
                  "write {clip: {steps: 20}}"),
    "a method without value": ("calibrate: [{clip: }]", "19: calibrate[0].clip: no value is given",
                               "write clip: {steps: 20}"),
    "a method as a word": ("calibrate: [clip]", "13: calibrate[0]: 'clip' is not a mapping",
                           "write {clip: {steps: 20}}"),
    "an unknown option": ("calibrate: [{clip: {step: 9}}]",
                          "21: calibrate[0].clip: unknown key 'step'", "did you mean 'steps'?"),
    "one step": ("calibrate: [{clip: {steps: 1}}]",
                 "28: calibrate[0].clip.steps: '1' is no number of ratios to try", "write 2 to 100"),
    "too many": ("calibrate: [{clip: {steps: 101}}]",
                 "28: calibrate[0].clip.steps: '101' is no number of ratios to try",
                 "write 2 to 100"),
    "steps in words": ("calibrate: [{clip: {steps: ten}}]",
                       "28: calibrate[0].clip.steps: 'ten' is no number of ratios to try",
                       "write 2 to 100"),
    "nothing left": ("calibrate: [{clip: {lowest: 0}}]",
                     "29: calibrate[0].clip.lowest: '0' is no ratio to clip at",
                     "write a number above 0 and below 1 such as 0.5, or a percent such as 50%"),
    "all of it": ("calibrate: [{clip: {lowest: 100%}}]",
                  "29: calibrate[0].clip.lowest: '100%' is no ratio to clip at",
                  "write a number above 0 and below 1 such as 0.5, or a percent such as 50%"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_says_where_what_and_what_to_write(case: str) -> None:
    text, problem, fix = FAULTS[case]
    with pytest.raises(PolicyError) as caught:
        load_policy_text(f"{HEAD}{text}\n", file="p.yaml")
    assert str(caught.value) == f"p.yaml:4:{problem}\n  fix: {fix}"
