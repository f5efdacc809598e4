"""What a format promises: no element moves further, and the promise is not an empty one."""

import pytest

from qgraph.formats import parse_format, parse_rounding
from qgraph.formats.rounding import NEAREST
from qgraph.numerics import Noise, error_bound, fake_quant
from tests.numerics.data import FORMATS, OTHER_FORMATS, kinds

DATA = kinds()
MODES = ("nearest", "nearest_away", "toward_zero", "up", "stochastic", "stochastic_equal")
# Formats that overflow where their scale is rounded down, which the bound is there to find.
SOUND = [text for text in (*FORMATS, *OTHER_FORMATS) if "overflow" not in text]


@pytest.mark.parametrize("text", SOUND)
def test_no_element_moves_further_than_the_format_promises(text: str) -> None:
    fmt = parse_format(text)
    for name, x in DATA.items():
        for mode in map(parse_rounding, MODES):
            bound = error_bound(x, fmt, -1, mode)
            if bound is None:
                continue
            short = fmt.scale.element is not None and not fmt.two_level  # a scale of few exponents
            if (short or fmt.scale.name == "ue5m0") and name not in ("randn", "midpoints"):
                continue
            if mode.mode in ("up", "stochastic_equal") and name == "under_power_of_two":
                continue  # a scale that is no float32 any more is taken as 1
            noise = Noise(seed=3, site=1) if mode.random or fmt.scale.random else None
            moved = (fake_quant(x, fmt, -1, noise, mode) - x).abs()
            assert bool((moved <= bound)[bound.isfinite()].all()), (name, str(mode))


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


@pytest.mark.parametrize(
    "text", ["e2m1/1x16/e4m3:mse/fp32", "log4/1x32/fp32", "ue4m3/1x8/fp32", "bf16/tensor/none"]
)
def test_formats_with_rules_of_their_own_promise_nothing(text: str) -> None:
    assert error_bound(DATA["randn"], parse_format(text), -1, NEAREST) is None
