"""Whatever the file holds, loading gives a policy or one PolicyError."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qgraph.policy
from qgraph.errors import PolicyError
from qgraph.policy import (
    Policy,
    dump_policy,
    load_policy,
    load_policy_dict,
    load_policy_text,
)

FOLDER = Path(qgraph.policy.__file__).parent / "recipes"
RECIPES = [path.read_text() for path in sorted(FOLDER.glob("*.yaml"))]
RECIPES.append(
    (FOLDER / "mxfp8.yaml").read_text()
    + """
schedule:
  - {at: 10%, until: 100, rule: 2, match: {op: linear}, set: {fprop: {input: mxfp8, weight: high}}}
  - {every: 50, for: 5, set: {wgrad: high}}
  - {on: plateau, patience: 30, improvement: 0.1%, for: 10, set: high}
  - {on: sharp, set: high}
monitors:
  - {watch: logit_sharpness, name: sharp, above: 0.5, every: 10, action: stop}
  - {watch: loss_spike, window: 50}
transforms: {r: {hadamard: 16, signs: run, seed: 7}}
functions: [{modules: "*.attn.*", softmax: two_pass}, {softmax: two_pass}]
calibrate: [{clip: {steps: 5, lowest: 30%}}, {clip: {modules: [a, b]}}]
"""
)
WORDS = [
    "", "~", "{}", "[]", "-1", "15%", "high", "linear", "matmul", "fp4", "stochastic", "rht", "\t",
    "&a", "*a", "!!python/name:os", "<<", "\ud800", "\x00", "- ", ": ", "?", "|", '"\\UFFFFFFFF"',
    "1e999", "0x1F", "9" * 5000, "2020-13-45", "---", "%YAML 9.9\n", "\u2028", "[" * 50, "'", '"',
]  # fmt: skip
KEYS = [
    "qgraph", "name", "source", "ragged", "coverage", "min_flops", "formats", "transforms", "rules",
    "schedule", "monitors", "at", "every", "for", "on", "set", "rule", "watch", "above",
    "match", "keep", "fprop", "dgrad", "wgrad", "op", "module", "role", "blocks", "last_blocks",
    "input", "weight",
    "lhs", "grad_output", "format", "rounding", "transform", "element", "block", "scale",
    "hadamard", "seed", "functions", "modules", "softmax", "calibrate", "clip", "steps", "lowest",
]  # fmt: skip
FAST = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def _check(load: Callable[[], Policy]) -> None:
    try:
        policy, message = load(), ""
    except PolicyError as error:
        policy, message = None, str(error)
    if policy is None:
        assert message.count("\n  fix: ") == message.count("\n") == 1
        assert message.replace("\n", "").isprintable()
    else:
        assert load_policy_text(dump_policy(policy)).fingerprint() == policy.fingerprint()


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(RECIPES))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.sampled_from(WORDS) | st.text(max_size=4)) + text[end:]
    return text


@st.composite
def _swapped(draw: st.DrawFn) -> str:
    words = draw(st.sampled_from(RECIPES)).split(" ")
    for _ in range(draw(st.integers(1, 4))):
        words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS + KEYS))
    return " ".join(words)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS + KEYS)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=25,
)


@FAST
@given(st.text())
def test_any_text_is_a_policy_or_one_error(text: str) -> None:
    _check(lambda: load_policy_text(text))


@FAST
@given(_mutated())
def test_mutated_recipe_is_a_policy_or_one_error(text: str) -> None:
    _check(lambda: load_policy_text(text))


@FAST
@given(_swapped())
def test_recipe_with_swapped_words_is_a_policy_or_one_error(text: str) -> None:
    _check(lambda: load_policy_text(text))


@FAST
@given(st.binary(max_size=200))
def test_any_bytes_are_a_policy_or_one_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_bytes(data)
        _check(lambda: load_policy(path))


@FAST
@given(TREES, TREES, TREES, TREES)
def test_any_data_in_any_place_is_a_policy_or_one_error(
    formats: object, match: object, product: object, other: object
) -> None:
    rules = [{"match": match, "fprop": product}, other]
    whole = {"qgraph": 1, "name": "high", "formats": formats, "rules": rules}
    for data in (whole, {**whole, "formats": {"fp4": formats}}, {**whole, "transforms": other}):
        _check(functools.partial(load_policy_dict, data))
