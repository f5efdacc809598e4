"""Gradients of the quantizer by name: what stands for its derivative, which is zero almost everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from qgraph.errors import FormatError

Estimator = Literal["ste", "clipped", "spline", "dge"]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """An estimator of the derivative of rounding, and whether the scale's own is added.

    `ste`: 1, straight through. `clipped`: 1 inside the element's range, 0 where it saturates.
    `spline`: rounding as a chain of lines: flat in the outer quarters between two neighbors, slope
    2 between. `dge`: the differentiable estimator (1/k)·|2t - 1|**(1/k - 1), t the place between
    two neighbors, at most `cap`. With `absmax`, the scale is differentiated too (product rule):
    the element of largest magnitude in each block takes the rest.

    Source: FP4 design space (arXiv 2509.17791); dge: arXiv 2501.17116.
    """

    estimator: Estimator = "ste"
    k: float = 5.0
    cap: float = 3.0
    absmax: bool = False

    @property
    def straight(self) -> bool:
        """Whether the gradient passes through unchanged."""
        return self.estimator == "ste" and not self.absmax

    def __str__(self) -> str:
        tail = f":{self.k:g}:{self.cap:g}" if self.estimator == "dge" else ""
        return f"{self.estimator}{tail}{'+absmax' if self.absmax else ''}"


STRAIGHT = Gradient()


def parse_gradient(text: str) -> Gradient:
    """Read an estimator: `ste`, `clipped`, `spline`, `dge` or `dge:k:cap`, perhaps with `+absmax`.

    Raises: FormatError if the text is none of these.
    """
    body, plus, tail = text.partition("+")
    word, *numbers = body.split(":")
    estimator = next((e for e in get_args(Estimator) if e == word), None)
    if estimator is None or (plus and tail != "absmax"):
        fix = "use one of: ste, clipped, spline, dge, dge:5:3; with +absmax for the scale's own"
        raise FormatError(f"unknown gradient '{text}'", fix)
    if numbers and estimator != "dge":
        raise FormatError(f"'{text}': only dge takes numbers", f"write {estimator}")
    if len(numbers) > 2 or not all(re.fullmatch(r"\d{1,3}(\.\d{1,3})?", n) for n in numbers):
        raise FormatError(f"'{text}': dge takes k and cap", "write dge:5:3")
    k, cap = [*map(float, numbers), *(5.0, 3.0)[len(numbers) :]]
    if k < 1 or cap <= 0:
        raise FormatError(f"'{text}': k is at least 1, and cap above 0", "write dge:5:3")
    return Gradient(estimator=estimator, k=k, cap=cap, absmax=bool(plus))
