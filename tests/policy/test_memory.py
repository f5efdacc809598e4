"""The keys optimizer, parameters and stash: what they load to, and what their faults say."""

from __future__ import annotations

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import dump_policy, load_policy_text

HEAD = "qgraph: 1\nname: p\nrules: [{match: {}, keep: high}]\n"  # three lines


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {exp_avg: int4/row/fp32, exp_avg_sq: {format: bfp8, rounding: up}, keep: head}\n",
        "optimizer: {momentum_buffer: bfp8, storage: emulated}\n",
        "parameters: {storage: bf16, compute: fp32, rounding: stochastic, keep: [a, b]}\n",
        "parameters: {storage: fp16, master: fp32}\n",
        "parameters: {storage: bf16, master: {format: fp8_row, rounding: stochastic}}\n",
        "stash: bfp4\n",
        "stash:\n  - {match: {op: linear, min_size: 9, blocks: [0, -1]}, format: bfp8}\n  - {keep: high}\n",
    ],
)
def test_a_policy_and_its_dump_are_one(text: str) -> None:
    policy = load_policy_text(HEAD + text)
    again = load_policy_text(dump_policy(policy))
    assert again.fingerprint() == policy.fingerprint()
    assert again.to_dict() == policy.to_dict()
    assert (
        policy.fingerprint()
        != load_policy_text(HEAD + "parameters: {storage: fp32}\n").fingerprint()
    )


def test_how_a_state_is_stored_does_not_change_numbers_and_what_it_is_stored_in_does() -> None:
    packed = load_policy_text(HEAD + "optimizer: {exp_avg: bfp8}\n")
    emulated = load_policy_text(HEAD + "optimizer: {exp_avg: bfp8, storage: emulated}\n")
    other = load_policy_text(HEAD + "optimizer: {exp_avg: bfp4}\n")
    assert packed.fingerprint() == emulated.fingerprint() != other.fingerprint()


def test_a_coarse_second_moment_is_warned_of_with_the_reason() -> None:
    text = "optimizer: {exp_avg: int4/row/fp32, exp_avg_sq: %s}\n"
    (warning,) = load_policy_text(HEAD + text % "int8/tensor/fp32").optimizer.warnings  # type: ignore[union-attr]
    assert warning.startswith(
        "optimizer.exp_avg_sq: int8/tensor/fp32 is too coarse for second moments"
    )
    assert "below 1/254 of its block's largest" in warning
    assert "arXiv 2407.11722" in warning
    for fine in (
        "e5m2/1x32/ue8m0",
        "high",
        "{format: int8/row/fp32, rounding: up}",
        "e4m3/row/fp32",
    ):
        assert load_policy_text(HEAD + text % fine).optimizer.warnings == ()  # type: ignore[union-attr]


CASES = {
    "format": (
        "optimizer: {exp_avg: bfp44}\n",
        "4:22: optimizer.exp_avg: unknown format 'bfp44'",
        "did you mean 'bfp4'?",
    ),
    "misspelt storage": (
        "optimizer: {exp_avg: bfp8, storge: packed}\n",
        "4:28: optimizer.storge: unknown key 'storge'",
        "did you mean 'storage'?",
    ),
    "storage": (
        "optimizer: {exp_avg: bfp8, storage: paked}\n",
        "4:37: optimizer.storage: unknown 'paked'",
        "did you mean 'packed'?",
    ),
    "no state": (
        "optimizer: {storage: packed}\n",
        "4:1: optimizer: no state has a format",
        "write exp_avg: int8/row/fp32, or remove optimizer",
    ),
    "state with a list": (
        "optimizer: {exp_avg: [1]}\n",
        "4:22: optimizer.exp_avg: a list is not a mapping",
        "write exp_avg: int8/row/fp32",
    ),
    "history": (
        "optimizer: {exp_avg: 'int8/tensor/fp32:delayed16'}\n",
        ("4:22: optimizer.exp_avg: int8/tensor/fp32:delayed16 keeps a history of steps, which only "
        "operands of products have"),
        "use the range absmax",
    ),
    "key of a state": (
        "optimizer: {exp_avg: {format: bfp8, round: up}}\n",
        "4:37: optimizer.exp_avg: unknown key 'round'",
        "did you mean 'rounding'?",
    ),
    "narrow compute": (
        "parameters: {storage: fp32, compute: bf16}\n",
        "4:38: parameters.compute: parameters stored in fp32 are not multiplied in bf16",
        "write storage: bf16 with compute: fp32; for bf16 products, train under autocast",
    ),
    "master and rounding": (
        "parameters: {storage: bf16, master: fp32, rounding: stochastic}\n",
        ("4:53: parameters.rounding: with a master, an update is not rounded to storage: it goes to "
        "the master"),
        "remove rounding or master",
    ),
    "rounding to fp32": (
        "parameters: {storage: fp32, rounding: stochastic}\n",
        "4:39: parameters.rounding: parameters stored in fp32 are updated in fp32 as they are",
        "remove rounding, or write storage: bf16",
    ),
    "no storage": (
        "parameters: {compute: fp32}\n",
        "4:13: parameters: the key 'storage' is missing",
        "write storage: bf16",
    ),
    "kept in one dtype": (
        "parameters: {storage: bf16, keep: [head]}\n",
        "4:35: parameters.keep: without a wider compute the whole model has one dtype",
        "write compute: fp32, or remove keep",
    ),
    "stash of nothing": (
        "stash:\n  - {match: {op: linear}}\n",
        "5:5: stash[0]: the rule says nothing",
        "write format: bfp4, or keep: high",
    ),
    "stash of both": (
        "stash: [{keep: high, format: bfp4}]\n",
        "4:9: stash[0]: keep and format exclude each other",
        "write format: bfp4, or keep: high",
    ),
    "stash format": (
        "stash: bfp44\n",
        "4:8: stash: unknown format 'bfp44'",
        "did you mean 'bfp4'?",
    ),
    "stash key": (
        "stash: [{match: {size: 3}, format: bfp4}]\n",
        "4:18: stash[0].match: unknown key 'size'",
        "did you mean 'min_size'?",
    ),
    "stash size": (
        "stash: [{match: {min_size: big}, format: bfp4}]\n",
        "4:28: stash[0].match.min_size: 'big' is not a number of elements",
        "write min_size: 4096",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_says_where_what_and_what_to_write(case: str) -> None:
    text, problem, fix = CASES[case]
    with pytest.raises(PolicyError) as caught:
        load_policy_text(HEAD + text, file="p.yaml")
    assert str(caught.value) == f"p.yaml:{problem}\n  fix: {fix}"
