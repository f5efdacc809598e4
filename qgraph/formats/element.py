"""Element formats: only what a standard fixes is stored; every limit is derived.

Three kinds: binary floating point, integers (with fixed point), and codebooks (any short list of
values). `qgraph.formats.names` reads and writes their names.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Specials = Literal["ieee", "nan_only", "fnuz", "none"]
IntRange = Literal["symmetric", "full", "asymmetric"]


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A binary floating-point format: value = 1.m · 2**(field - bias), 0.m · 2**(1 - bias) for field 0.

    `specials` says which codes are not numbers: `ieee` gives up the top exponent, `nan_only` one
    code per sign, `fnuz` only the code of negative zero, `none` nothing. Without `subnormals`
    nothing lies between zero and the smallest normal value. A format that does not `saturate`
    overflows to infinity (`ieee`) or NaN. A real-valued bias b is an integer one, ceil(b), times
    the float32 nearest to 2**(ceil(b) - b) (the `unit`).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Specials
    source: str = field(default="", compare=False)  # the document the numbers come from
    offset: float | None = None  # the bias; left out, 2**(exponent_bits - 1) - 1, at least 1
    signed: bool = True
    subnormals: bool = True
    saturate: bool = True

    @property
    def bits(self) -> int:
        """Width of one code, in bits."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent bias, rounded up if it is no integer."""
        if self.offset is not None:
            return math.ceil(self.offset)
        return max(1, (1 << (self.exponent_bits - 1)) - 1)

    @property
    def unit(self) -> float:
        """What a real-valued bias multiplies every value by; 1 for an integer bias."""
        if self.offset is None or float(self.offset).is_integer():
            return 1.0
        return float32(2.0 ** (self.bias - self.offset))

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value, before the unit."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite value, before the unit."""
        lost = self.specials == "ieee" or (self.specials == "nan_only" and not self.mantissa_bits)
        return (1 << self.exponent_bits) - 1 - lost - self.bias

    @property
    def max(self) -> float:
        """Largest finite value."""
        top_is_nan = self.specials == "nan_only" and self.mantissa_bits > 0
        steps = (2 << self.mantissa_bits) - 1 - top_is_nan
        return float32(math.ldexp(steps, self.max_exponent - self.mantissa_bits) * self.unit)

    @property
    def min(self) -> float:
        """Smallest finite value."""
        return -self.max if self.signed else 0.0

    @property
    def min_normal(self) -> float:
        """Smallest normal value."""
        return float32(math.ldexp(1.0, self.min_exponent) * self.unit)

    @property
    def min_positive(self) -> float:
        """Smallest value above zero: a subnormal one, if the format has them."""
        steps = self.mantissa_bits if self.subnormals else 0
        return float32(math.ldexp(1.0, self.min_exponent - steps) * self.unit)


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """An integer format; with `fraction_bits` f it is fixed point, in steps of 2**-f.

    `symmetric` leaves the lowest code out: codes -(2**(bits-1) - 1) to 2**(bits-1) - 1. `full`
    has it. `asymmetric` has it too, and its blocks have a zero point beside the scale.
    """

    name: str
    bits: int
    range: IntRange = "symmetric"
    fraction_bits: int = 0
    source: str = field(default="", compare=False)

    @property
    def unit(self) -> float:
        """The step between neighbors."""
        return math.ldexp(1.0, -self.fraction_bits)

    @property
    def max(self) -> float:
        """Largest value."""
        return ((1 << (self.bits - 1)) - 1) * self.unit

    @property
    def min(self) -> float:
        """Smallest value."""
        return -self.max if self.range == "symmetric" else -(self.max + self.unit)

    @property
    def min_positive(self) -> float:
        """Smallest value above zero."""
        return self.unit

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value."""
        return self.bits - 2 - self.fraction_bits


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """A format that lists its values, ascending; code n stands for values[n].

    `limits[n]` is where rounding to nearest turns from values[n] to values[n + 1]; on the limit
    itself the even code is taken. All are float32 numbers.
    """

    name: str
    values: tuple[float, ...]
    limits: tuple[float, ...]
    source: str = field(default="", compare=False)

    @property
    def bits(self) -> int:
        """Width of one code, in bits."""
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def max(self) -> float:
        """Largest magnitude: what a block's largest magnitude is scaled to."""
        return max(abs(self.values[0]), abs(self.values[-1]))

    @property
    def min(self) -> float:
        """Smallest value."""
        return self.values[0]

    @property
    def min_positive(self) -> float:
        """Smallest value above zero."""
        return next(value for value in self.values if value > 0)

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest magnitude."""
        return math.frexp(self.max)[1] - 1


Element = FloatFormat | IntFormat | Codebook


def midpoints(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return the float32 numbers halfway between neighbors."""
    pairs = itertools.pairwise(values)
    return tuple(float32(float((Fraction(a) + Fraction(b)) / 2)) for a, b in pairs)


def float32(value: float) -> float:
    """Return the float32 number nearest to `value`, ties to even."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
