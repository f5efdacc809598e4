"""Scales: their format, how they are rounded, and which magnitude of a block they are taken from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from qgraph.errors import FormatError
from qgraph.formats.element import FloatFormat
from qgraph.formats.names import find_element

ScaleRounding = Literal[
    "rceil",
    "floor",
    "ceil",
    "even",
    "rfloor",
    "nearest",
    "up",
    "down",
    "stochastic",
    "eden",
    "pow2",
]
RangeKind = Literal[
    "absmax", "percentile", "mse", "std", "rms", "4over6", "4over6_mse", "fixed", "delayed"
]

# The roundings a kind of scale takes; the first is the default.
SCALE_ROUNDINGS: dict[str, tuple[ScaleRounding, ...]] = {
    "power": ("rceil", "floor", "ceil", "even", "rfloor"),
    "float": ("nearest", "up", "down", "stochastic", "eden"),
    "fp32": ("nearest", "pow2"),
    "none": ("nearest",),
}
_NUMBER = r"\d{1,6}(?:\.\d{1,6})?(?:e-?\d{1,2})?"
_SCALES = "fp32, none, ue8m0 (or ueXm0), or a float such as e4m3 or ue5m3"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Which magnitude of a block is mapped to the element's largest value.

    `absmax`: the largest. `percentile`: below it lie `value` percent of the magnitudes. `fixed`:
    `value` itself. `std`, `rms`: a multiple of the standard deviation or the root mean square that
    suits normal data (QuEST). `mse`: the one of 20 shares of the largest with the least squared
    error. `4over6`: the largest is mapped to 6 or to 4, whichever has the least absolute error
    (`4over6_mse`: squared); `value`, 256 or 448, is the largest block scale. `delayed`: the largest
    of the last `value` steps. No range is below `floor`, which `absmax` alone has.
    """

    kind: RangeKind = "absmax"
    value: float = 0.0
    floor: float = 0.0

    def __str__(self) -> str:
        if self.floor:
            return f"{self.kind}+floor{self.floor:g}".replace("e-0", "e-")
        if self.kind in ("percentile", "fixed", "delayed"):
            return f"{'p' if self.kind == 'percentile' else self.kind}{self.value:g}"
        return f"{self.kind}_448" if self.value == 448 else self.kind


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The format of a block's scale, how it is rounded, and what it is taken from.

    `element` is set for a floating-point scale, `exponent_bits` for a power of two; a scale of
    neither is fp32 or none.
    """

    name: str
    rounding: ScaleRounding
    range: Range = Range()
    element: FloatFormat | None = None
    exponent_bits: int = 0

    @property
    def kind(self) -> str:
        """One of power, float, fp32 and none."""
        if self.exponent_bits:
            return "power"
        return "float" if self.element else self.name

    @property
    def random(self) -> bool:
        """Whether rounding it takes random bits."""
        return self.rounding in ("stochastic", "eden")

    @property
    def bits(self) -> int:
        """Storage of one scale, in bits."""
        if self.element:
            return 8 * -(-self.element.bits // 8)
        return {"power": 8, "fp32": 32, "none": 0}[self.kind]

    def __str__(self) -> str:
        text = self.name
        if self.kind == "power" or self.rounding != SCALE_ROUNDINGS[self.kind][0]:
            text += f"-{self.rounding}"
        return text if self.range == Range() else f"{text}:{self.range}"


def make_range(text: str) -> Range:
    """Read a range: absmax, absmax+floor1e-5, p99.9, fixed6, mse, std, rms, 4over6, or delayed16.

    Raises: FormatError if the text is none of these, or the number makes no sense.
    """
    fix = "use one of: absmax, absmax+floor1e-5, p99.9, fixed6, mse, std, rms, 4over6, 4over6_mse, delayed16"
    name = text.removesuffix("_448")
    if name in ("4over6", "4over6_mse"):
        kind: RangeKind = "4over6" if name == "4over6" else "4over6_mse"
        return Range(kind=kind, value=448 if name != text else 256)
    if text in ("absmax", "mse", "std", "rms"):
        return Range(kind=next(kind for kind in get_args(RangeKind) if kind == text))
    if found := re.fullmatch(rf"absmax\+floor({_NUMBER})", text):
        floor = float(found[1])
        if not 1e-30 <= floor <= 1e30:
            raise FormatError(f"'{text}' is no magnitude", "write above 0, as in absmax+floor1e-5")
        return Range(floor=floor)
    found = re.fullmatch(rf"(p|fixed|delayed)({_NUMBER})", text)
    if not found:
        raise FormatError(f"unknown range '{text}'", fix)
    value = float(found[2])
    if found[1] == "p" and not 0 < value <= 100:
        raise FormatError(f"'{text}' is no percentile", "write above 0 to 100, as in p99.9")
    if found[1] == "fixed" and not 1e-30 <= value <= 1e30:
        raise FormatError(f"'{text}' is no magnitude", "write above 0, as in fixed6")
    if found[1] == "delayed" and not (value.is_integer() and 1 <= value <= 1024):
        raise FormatError(f"'{text}' is no number of steps", "write 1 to 1024, as in delayed16")
    return Range(
        kind="percentile" if found[1] == "p" else "fixed" if found[1] == "fixed" else "delayed",
        value=value,
    )


def make_scale(name: str, rounding: str | None = None, range: Range | None = None) -> Scale:
    """Return the scale of this name, rounding (None: the usual one) and range.

    Raises: FormatError naming what is unknown and what is legal.
    """
    element, exponent_bits = None, 0
    if power := re.fullmatch(r"ue(\d)m0", name):
        exponent_bits = int(power[1])
        if not 2 <= exponent_bits <= 8:
            raise FormatError(f"unknown scale '{name}'", "write ue2m0 to ue8m0")
    elif name not in ("fp32", "none"):
        try:
            found = find_element(name)
        except FormatError:
            found = None
        if not isinstance(found, FloatFormat) or found.unit != 1:
            raise FormatError(f"unknown scale '{name}'", f"use one of: {_SCALES}")
        element, name = found, found.name
    kind = "power" if exponent_bits else "float" if element else name
    legal = SCALE_ROUNDINGS[kind]
    chosen = next((r for r in legal if r == (rounding or legal[0])), None)
    if chosen is None:
        raise FormatError(
            f"the scale {name} is not rounded '{rounding}'", f"use one of: {', '.join(legal)}"
        )
    return Scale(
        name=name,
        rounding=chosen,
        range=range or Range(),
        element=element,
        exponent_bits=exponent_bits,
    )
