"""Element formats: only what a standard fixes is stored; every limit is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A signed binary floating-point format of at most 8 bits, with subnormals, saturating.

    `specials` says which codes are not numbers: `ieee` gives up the top exponent,
    `nan_only` gives up one code per sign, `none` gives up nothing.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Literal["ieee", "nan_only", "none"]
    source: str  # the document the numbers come from

    @property
    def bits(self) -> int:
        """Width of one code, in bits."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent bias."""
        return int((1 << (self.exponent_bits - 1)) - 1)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite value."""
        lost = self.specials == "ieee" or (self.specials == "nan_only" and not self.mantissa_bits)
        return (1 << self.exponent_bits) - 1 - lost - self.bias

    @property
    def max(self) -> float:
        """Largest finite value."""
        steps = (
            (2 << self.mantissa_bits) - 1 - (self.specials == "nan_only" and self.mantissa_bits > 0)
        )
        return math.ldexp(steps, self.max_exponent - self.mantissa_bits)

    @property
    def min_normal(self) -> float:
        """Smallest normal value."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def min_subnormal(self) -> float:
        """Smallest value above zero: the step near zero."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa_bits)


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """A signed integer format with a symmetric range: codes -(2**(bits-1) - 1) to 2**(bits-1) - 1."""

    name: str
    bits: int
    source: str

    @property
    def max(self) -> float:
        """Largest value."""
        return float((1 << (self.bits - 1)) - 1)

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value."""
        return self.bits - 2


Element = FloatFormat | IntFormat
