"""What a product may be quantized to, in a few words: `nvfp4`, `nvfp4 rht sr`, `e4m3/row/fp32`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from qgraph.errors import FormatError, PolicyError
from qgraph.formats import BlockFormat, parse_format
from qgraph.formats.rounding import NEAREST, STOCHASTIC
from qgraph.policy import OperandPolicy, Transform

WORDS = {
    "sr": "gradients are rounded stochastically",
    "rht": "both operands are rotated by Transformer Engine's 16-point Hadamard transform",
}
RHT = Transform(name="rht", hadamard=16, signs="te")
HIGH_BITS = 16.0
HIGH_NAME = "high"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to quantize both operands of a product; without a format they stay high."""

    name: str
    format: BlockFormat | None = None
    stochastic: bool = False
    transform: Transform | None = None

    @property
    def bits(self) -> float:
        """Bits an element, scales included."""
        return self.format.bits_per_element if self.format else HIGH_BITS

    def operand(self, kind: str) -> OperandPolicy:
        """Return what happens to the operand of this kind."""
        drawn = self.stochastic and kind == "grad_output"
        return OperandPolicy(
            format=self.format,
            rounding=STOCHASTIC if drawn else NEAREST,
            transform=self.transform,
        )

    def operands(self, kinds: tuple[str, ...]) -> tuple[OperandPolicy, ...]:
        """Return what happens to the operands of a product; () where nothing does."""
        return tuple(self.operand(kind) for kind in kinds) if self.format else ()


HIGH_CANDIDATE = Candidate(name=HIGH_NAME)

Measure = Literal["gradient", "loss", "wgrad", "fisher", "hutchinson"]
MEASURES: dict[Measure, str] = {
    "gradient": "the whole gradient's relative error with this product alone quantized",
    "loss": "how far the loss moves with this product alone quantized",
    "wgrad": "the relative error of the module's weight gradient (arXiv 2509.25149)",
    "fisher": "the loss the output's error costs, by the squared gradient (empirical Fisher)",
    "hutchinson": "the loss the weight's error costs, by the Hessian's trace (HAWQ-V2)",
}


def check_measure(name: str) -> Measure:
    """Return the measure of this name.

    Raises: PolicyError naming the measures there are.
    """
    found = next((measure for measure in get_args(Measure) if measure == name), None)
    if found is None:
        raise PolicyError("--by", name, "unknown measure", f"use one of: {', '.join(MEASURES)}")
    return found  # type: ignore[no-any-return]


def parse_candidates(text: str) -> tuple[Candidate, ...]:
    """Read candidates set apart by commas; each a format's name or text form, and words of `WORDS`.

    Raises: PolicyError naming what is unknown, or a candidate that is there twice.
    """
    found: list[Candidate] = []
    for part in re.split(r",(?![^(]*\))", text):
        name, *words = part.split() or [""]
        unknown = [word for word in words if word not in WORDS]
        if unknown:
            problem = f"unknown word '{unknown[0]}'"
            raise PolicyError("--formats", part.strip(), problem, f"use one of: {', '.join(WORDS)}")
        try:
            fmt = parse_format(name)
        except FormatError as error:
            raise PolicyError("--formats", part.strip() or "''", error.problem, error.fix) from None
        candidate = Candidate(
            name=" ".join([name, *sorted(words)]),
            format=fmt,
            stochastic="sr" in words,
            transform=RHT if "rht" in words else None,
        )
        if any(candidate.name == other.name for other in found):
            raise PolicyError("--formats", part.strip(), "it is there twice", "name it once")
        found.append(candidate)
    return tuple(found)
