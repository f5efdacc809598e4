"""The scaling law of quantized training: its published values, and what it takes of a format."""

from __future__ import annotations

from math import inf, log2

import pytest

from qgraph.formats import parse_format
from qgraph.policy import load_policy, load_policy_text
from qgraph.predict import scaling_law
from qgraph.predict.scaling_law import Precision, critical_tokens, high_loss, penalty, precision

# arXiv 2501.02423: the critical data size of a model of 1 billion parameters, 128 elements a scale.
PUBLISHED = {"e8m7/1x128/fp32": 1730e12, "e4m3/1x128/fp32": 27e12, "e2m1/1x128/fp32": 0.4e12}
BEST = {4: (2, 1), 5: (2, 2), 6: (3, 2), 8: (4, 3), 16: (8, 7)}


@pytest.mark.parametrize("text", PUBLISHED)
def test_the_critical_data_sizes_of_the_paper(text: str) -> None:
    found = critical_tokens(1e9, parse_format(text))
    assert float(f"{found:.2g}" if found > 1e12 else f"{found:.1g}") == pytest.approx(
        PUBLISHED[text], rel=0.02
    )


@pytest.mark.parametrize("bits", BEST)
def test_the_best_layouts_of_the_paper(bits: int) -> None:
    assert scaling_law.best_layout(bits) == BEST[bits]


@pytest.mark.parametrize("text", ["e2m1/1x16/fp32", "e4m3/1x32/fp32", "int8/row/fp32"])
def test_more_data_helps_up_to_the_critical_size_and_not_past_it(text: str) -> None:
    fmt, size = parse_format(text), 154e6
    turn = critical_tokens(size, fmt)

    def loss(tokens: float) -> float:
        return high_loss(size, tokens) + penalty(size, tokens, fmt)

    assert loss(turn) < min(loss(0.9 * turn), loss(1.1 * turn))


def test_a_scale_for_each_element_costs_nothing() -> None:
    alone = Precision(exponent=2, mantissa=1, log2_block=0)
    assert penalty(1e9, 1e12, alone) == 0
    assert critical_tokens(1e9, alone) == inf


def test_what_it_takes_of_a_format() -> None:
    nvfp4 = precision(parse_format("e2m1/16x16/e4m3/fp32"))
    assert nvfp4 is not None
    assert (nvfp4.exponent, nvfp4.mantissa, nvfp4.log2_block) == (2, 1, log2(256))
    assert nvfp4.notes == ("scales in e4m3; the law was fitted with scales in high precision",)
    whole = precision(parse_format("int4/tensor/fp32"))
    assert whole is not None
    assert (whole.exponent, whole.mantissa) == (1, 2)
    assert any("lower bound" in note for note in whole.notes)
    assert precision(parse_format("nf4/1x64/fp32")) is None
    with pytest.raises(ValueError, match="no exponent and mantissa"):
        penalty(1e9, 1e9, parse_format("nf4/1x64/fp32"))


def test_which_operands_of_a_policy_it_speaks_about() -> None:
    found = scaling_law.coverage(load_policy("nvfp4"))
    assert found.inside == {
        "e2m1/16x16/e4m3/fp32": ["rule 3 fprop.weight", "rule 3 dgrad.weight"],
        "e2m1/1x16/e4m3/fp32": ["rule 3 wgrad.input"],
    }
    places = [place.split()[-1] for group in found.outside.values() for place in group]
    assert sorted(places) == ["dgrad.grad_output", "fprop.input", "wgrad.grad_output"]
    text = "qgraph: 1\nname: n\nrules: [{fprop: {weight: nf4/1x64/fp32}}]\n"
    assert list(scaling_law.coverage(load_policy_text(text)).unknown) == ["nf4/1x64/fp32"]
