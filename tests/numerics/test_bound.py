"""What a format promises: no element moves further, and the promise is not an empty one."""

import pytest

from qgraph.formats import parse_format, parse_rounding
from qgraph.formats.rounding import NEAREST
from qgraph.numerics import Noise, error_bound, fake_quant
from tests.numerics.data import FORMATS, OTHER_FORMATS, kinds

DATA = kinds()
MODES = ("nearest", "nearest_away", "toward_zero", "up", "stochastic", "stochastic_equal")
# Formats with rules of their own for ranges, scales or codes: no bound is known.
WITHOUT = (
    "e2m1/1x16/e4m3:mse/fp32", "int8/row/fp32:p99.9", "int8/tensor/fp32:p99",
    "e2m1/1x32/ue8m0-rfloor:std", "e2m1/1x16/e4m3:rms/fp32", "e8m3/tensor/none", "bf16/tensor/none",
    "nf4/1x64/fp32", "ternary/row/fp32:mse", "log4/1x32/fp32", "power4+a0.5/row/fp32", "ue4m3/1x8/fp32",
    "fixed4.4/tensor/none", "binary/row/fp32", "e4m3+b140/tensor/none", "list(-3,-1,0.5,2)/1x8/fp32",
    "e2m1/1x16/e4m3@torchao_ptq", "e2m1/1x16/e4m3/fp32@torchao_ptq", "e2m1/1x16/e4m3/fp32@modelopt",
    "e2m1/1x16/e4m3:4over6/fp32@quartet2", "e2m1/1x16/e4m3-eden/fp32@quartet2",
    "e2m1/1x16/e4m3@qutlass", "e4m3/tensor/fp32@torchao", "e5m2/row/fp32-pow2@torchao",
)  # fmt: skip
# Those that overflow where their scale is rounded down are what the bound is there to find.
SOUND = [t for t in (*FORMATS, *OTHER_FORMATS) if "overflow" not in t and t not in WITHOUT]


@pytest.mark.parametrize("text", SOUND)
def test_no_element_moves_further_than_the_format_promises(text: str) -> None:
    fmt, held = parse_format(text), 0
    for name, x in DATA.items():
        for mode in map(parse_rounding, MODES):
            bound = error_bound(x, fmt, -1, mode)
            assert bound is not None
            short = fmt.scale.element is not None and not fmt.two_level  # a scale of few exponents
            if (short or fmt.scale.name == "ue5m0") and name not in ("randn", "midpoints"):
                continue
            if mode.mode in ("up", "stochastic_equal") and name == "under_power_of_two":
                continue  # a scale that is no float32 any more is taken as 1
            noise = Noise(seed=3, site=1) if mode.random or fmt.scale.random else None
            moved = (fake_quant(x, fmt, -1, noise, mode) - x).abs()
            assert bool((moved <= bound)[bound.isfinite()].all()), (name, str(mode))
            held += int(bound.isfinite().sum())
    assert held >= 2 * len(MODES) * DATA["randn"].numel()  # two kinds of data are held for each


@pytest.mark.parametrize("text", FORMATS)
def test_the_promise_is_nearly_reached_and_a_wrong_scale_breaks_it(text: str) -> None:
    fmt, x = parse_format(text), DATA["randn"]
    bound = error_bound(x, fmt, -1, NEAREST)
    assert bound is not None
    reached = ((fake_quant(x, fmt, -1) - x).abs() / bound).max()
    # A power of two is up to 2 times the scale, and usually less.
    assert reached > (0.3 if "ue8m0" in text else 0.75)
    for factor in (0.5, 2.0):  # as a kernel that misreads the scale would
        assert bool(((fake_quant(x, fmt, -1) * factor - x).abs() > bound).any())


def test_a_scale_that_cannot_reach_the_data_breaks_the_promise() -> None:
    tiny = DATA["randn"] * 1e-5
    for text, kept in (("e2m1/1x16/e4m3", False), ("e2m1/1x16/e4m3/fp32", True)):
        fmt = parse_format(text)
        bound = error_bound(tiny, fmt, -1, NEAREST)
        assert bound is not None
        assert bool(((fake_quant(tiny, fmt, -1) - tiny).abs() <= bound).all()) == kept


@pytest.mark.parametrize("text", WITHOUT)
def test_formats_with_rules_of_their_own_promise_nothing(text: str) -> None:
    assert error_bound(DATA["randn"], parse_format(text), -1, NEAREST) is None
