"""Rounding one number at a time, in exact fractions and in the words of the standard.

Slow, and written apart from `qgraph.numerics.cast`: the second witness the tests hold it to.
"""

from __future__ import annotations

import bisect
import functools
import math
from fractions import Fraction

from qgraph.formats import Codebook, Element, FloatFormat, IntFormat, Rounding, float32


@functools.cache
def codes_of(fmt: Element) -> tuple[tuple[Fraction, int], ...]:
    """Return every finite value at or above zero with its code, ascending; of a codebook, every value.

    Values are those before the unit of a real-valued bias or of fixed point.
    """
    if isinstance(fmt, Codebook):
        return tuple((Fraction(value), code) for code, value in enumerate(fmt.values))
    if isinstance(fmt, IntFormat):
        return tuple((Fraction(n), n) for n in range(1 << (fmt.bits - 1)))
    found = []
    for code in range(1 << (fmt.exponent_bits + fmt.mantissa_bits)):
        field, fraction = divmod(code, 1 << fmt.mantissa_bits)
        if _is_special(fmt, field, fraction) or (field == 0 and fraction and not fmt.subnormals):
            continue
        leading = 1 if field > 0 else 0  # the hidden bit
        significand = leading + Fraction(fraction, 1 << fmt.mantissa_bits)
        found.append((significand * Fraction(2) ** (max(field, 1) - fmt.bias), code))
    return tuple(found)


def _is_special(fmt: FloatFormat, field: int, fraction: int) -> bool:
    last_field = field == (1 << fmt.exponent_bits) - 1
    last_fraction = fraction == (1 << fmt.mantissa_bits) - 1
    if fmt.specials == "ieee":
        return last_field
    return fmt.specials == "nan_only" and last_field and last_fraction


def round_number(x: float, fmt: Element, rounding: Rounding, noise: int = 0) -> float:
    """Return the value of `fmt` that the float32 number `x` rounds to.

    Source: IEEE 754-2019, 4.3 (directions), 7.4 (overflow).
    """
    if math.isnan(x):
        return x
    if isinstance(fmt, Codebook):
        return _round_in_list(x, fmt, rounding, noise)
    if fmt.unit != 1:
        x = float32(x / fmt.unit)
    values = codes_of(fmt)
    negative = math.copysign(1.0, x) < 0
    if negative and isinstance(fmt, FloatFormat) and not fmt.signed:
        return 0.0
    if isinstance(fmt, IntFormat) and negative and fmt.range != "symmetric":
        values = (*values, (values[-1][0] + 1, values[-1][1] + 1))
    saturates = isinstance(fmt, IntFormat) or fmt.saturate
    top = values[-1][0]
    if math.isinf(x) and not saturates:
        return _signed(_beyond(fmt), negative)
    size = top if math.isinf(x) else Fraction(abs(x))
    size = min(size, top) if saturates else size
    if size > top:
        return _signed(_overflow(size, fmt, rounding, noise, negative), negative)
    place = bisect.bisect_right(values, size, key=lambda entry: entry[0]) - 1
    low, code = values[place]
    if size > low:
        high = values[place + 1][0]
        if _takes_upper(size, low, high, code, rounding, noise, negative):
            low = high
    size_found = float32(float(low)) * fmt.unit
    if size_found == 0 and isinstance(fmt, FloatFormat) and fmt.specials == "fnuz":
        return 0.0
    return _signed(float32(size_found), negative)


def _takes_upper(
    x: Fraction,
    low: Fraction,
    high: Fraction,
    code: int,
    rounding: Rounding,
    noise: int,
    negative: bool,
) -> bool:
    """Whether a magnitude between neighbors goes to the upper one; `code` is the lower one's."""
    share = (x - low) / (high - low)
    half = Fraction(1, 2)
    match rounding.mode:
        case "nearest" | "nearest_away" | "nearest_zero" | "nearest_odd":
            on_tie = {
                "nearest": code % 2 == 1,
                "nearest_away": True,
                "nearest_zero": False,
                "nearest_odd": code % 2 == 0,
            }[rounding.mode]
            return share > half or (share == half and on_tie)
        case "toward_zero":
            return False
        case "up":
            return not negative
        case "down":
            return negative
        case "odd":
            return code % 2 == 0
        case "stochastic":
            # The float32 sum of the definition: n + share, n what fits below in whole steps.
            steps = float32(float(x / (high - low)))
            whole = math.floor(steps)
            return float32(steps + noise / (1 << rounding.bits)) >= whole + 1
    return noise >= 1 << (rounding.bits - 1)


def _overflow(
    x: Fraction, fmt: FloatFormat | IntFormat, rounding: Rounding, noise: int, negative: bool
) -> float:
    """Round as if exponents had no end; what is still beyond the largest value overflows."""
    values = codes_of(fmt)
    (top, code), step = values[-1], values[-1][0] - values[-2][0]
    wide = isinstance(fmt, FloatFormat) and fmt.mantissa_bits > 0
    upper = top + (step if wide else top)
    if x < upper and not _takes_upper(x, top, upper, code, rounding, noise, negative):
        return float(top)
    if rounding.mode == "toward_zero" or (rounding.mode == "up" and negative):
        return float(top)
    return float(top) if rounding.mode == "down" and not negative else _beyond(fmt)


def _beyond(fmt: FloatFormat | IntFormat) -> float:
    return math.inf if isinstance(fmt, FloatFormat) and fmt.specials == "ieee" else math.nan


def _round_in_list(x: float, fmt: Codebook, rounding: Rounding, noise: int) -> float:
    """Round to the nearest by the list's own limits; the other modes by the values."""
    place = min(max(bisect.bisect_right(fmt.values, x) - 1, 0), len(fmt.values) - 2)
    low, high = fmt.values[place], fmt.values[place + 1]
    if x <= low or x >= high:
        return low if x <= low else high
    negative = x < 0 and high <= 0
    near, far, code = (high, low, place + 1) if negative else (low, high, place)
    share = float32(float32(x - near) / float32(far - near))
    share = min(max(share, 2.0**-149), 1 - 2.0**-24)
    if rounding.mode.startswith("nearest"):
        limit = fmt.limits[place]
        share = 0.5 if x == limit else 0.75 if (x < limit) == negative else 0.25
    takes = _takes_upper(Fraction(share), Fraction(0), Fraction(1), code, rounding, noise, negative)
    return far if takes else near


def _signed(size: float, negative: bool) -> float:
    return -size if negative else size
