"""Rounding modes by name. Source: IEEE 754-2019, section 4.3; the rest as they are used in the field."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from qgraph.errors import FormatError

# Each says where a number between two neighbors goes. "Even" and "odd" speak of codes.
ROUNDINGS = {
    "nearest": "to the nearer, ties to the even code",
    "nearest_away": "to the nearer, ties away from zero",
    "nearest_zero": "to the nearer, ties toward zero",
    "nearest_odd": "to the nearer, ties to the odd code",
    "toward_zero": "toward zero: truncation, a masked mantissa",
    "up": "toward plus infinity",
    "down": "toward minus infinity",
    "odd": "to the odd code, if it is not exact",
    "stochastic": "up or down at random, the nearer the likelier; the mean is exact",
    "stochastic_equal": "up or down at random, half and half",
}
MOST_BITS = 24  # of a random number that float32 holds


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """A rounding mode, and for the random ones how many bits they draw for each element."""

    mode: str = "nearest"
    bits: int = 8

    @property
    def random(self) -> bool:
        """Whether the mode draws random bits."""
        return self.mode.startswith("stochastic")

    def __str__(self) -> str:
        return f"{self.mode}:{self.bits}" if self.random and self.bits != 8 else self.mode


NEAREST = Rounding()
STOCHASTIC = Rounding(mode="stochastic")


@functools.cache
def parse_rounding(text: str) -> Rounding:
    """Read a mode, or a random mode with its number of bits: `stochastic:4`.

    Raises: FormatError if there is none of that name, or the bits are not 1 to 24.
    """
    mode, colon, count = text.partition(":")
    if mode not in ROUNDINGS:
        raise FormatError(f"unknown rounding '{text}'", f"use one of: {', '.join(ROUNDINGS)}")
    rounding = Rounding(mode=mode)
    if not colon:
        return rounding
    if not rounding.random:
        raise FormatError(f"'{text}': only random roundings draw bits", f"write {mode}")
    if not re.fullmatch(r"\d{1,2}", count) or not 1 <= int(count) <= MOST_BITS:
        raise FormatError(
            f"'{text}': the bits are not 1 to {MOST_BITS}", f"write {mode}, or {mode}:4"
        )
    return Rounding(mode=mode, bits=int(count))
