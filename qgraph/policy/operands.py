"""What happens to one operand of a product, and how a policy file says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qgraph.formats import BlockFormat, Gradient, Rounding
from qgraph.formats.gradient import STRAIGHT
from qgraph.formats.rounding import NEAREST
from qgraph.formats.scale import SCALE_ROUNDINGS

Signs = Literal["te", "none", "run", "site", "step"]
Output = Literal["bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A block Hadamard rotation along the axis a product sums over.

    `hadamard` counts elements per block. `signs` picks the random signs: Transformer Engine's
    fixed sixteen, none, or drawn from `seed` once for the run or for each site, or anew each step.
    The rotated values are rounded to `output`.
    """

    name: str
    hadamard: int
    signs: Signs = "none"
    output: Output = "bf16"
    seed: int = 0

    @property
    def rotation(self) -> tuple[int, Signs, int]:
        """What decides the matrix: both operands of a product must agree on it."""
        return self.hadamard, self.signs, self.seed


@dataclass(frozen=True, kw_only=True)
class OperandPolicy:
    """What happens to one operand of a product; no format means high precision."""

    format: BlockFormat | None = None
    rounding: Rounding = NEAREST
    transform: Transform | None = None
    gradient: Gradient = STRAIGHT

    @property
    def quantizes(self) -> bool:
        """Whether the operand is stored in fewer bits."""
        return self.format is not None

    @property
    def draws(self) -> bool:
        """Whether codes or scales take random bits."""
        scaled = self.format is not None and self.format.scale.random
        return self.rounding.random or scaled

    @property
    def random(self) -> bool:
        """Whether anything takes random bits each step: codes, scales or rotation signs."""
        return self.draws or (self.transform is not None and self.transform.signs == "step")

    @property
    def changes(self) -> bool:
        """Whether anything happens to the operand at all."""
        return self.format is not None or self.transform is not None


HIGH = OperandPolicy()


def operand_facts(operand: OperandPolicy) -> dict[str, object]:
    """Return what of an operand changes numbers."""
    transform = operand.transform and transform_facts(operand.transform)
    return {
        "format": operand.format and str(operand.format),
        "rounding": str(operand.rounding),
        "transform": transform,
        "gradient": str(operand.gradient),
    }


def transform_facts(transform: Transform) -> dict[str, object]:
    """Return what of a transform changes numbers, which is all but its name."""
    return {
        "hadamard": transform.hadamard,
        "signs": transform.signs,
        "output": transform.output,
        "seed": transform.seed,
    }


def operand_entry(operand: OperandPolicy) -> object:
    """Return an operand as a policy file writes it."""
    name = "high" if operand.format is None else str(operand.format)
    if operand == OperandPolicy(format=operand.format):
        return name
    entry = {"format": name, "rounding": str(operand.rounding), "gradient": str(operand.gradient)}
    return entry | ({"transform": operand.transform.name} if operand.transform else {})


def format_entry(fmt: BlockFormat) -> dict[str, object]:
    """Return a format as an entry of `formats`, in the file's own schema."""
    across, along = fmt.block.across, fmt.block.along
    entry: dict[str, object] = {
        "element": fmt.element.name,
        "block": str(fmt.block) if across is None or along is None else [across, along],
        "scale": fmt.scale.name,
    }
    if fmt.scale.rounding != SCALE_ROUNDINGS[fmt.scale.kind][0] or fmt.scale.kind == "power":
        entry["scale_rounding"] = fmt.scale.rounding
    if fmt.two_level:
        entry["tensor_scale"] = fmt.tensor_scale
    if fmt.scale.range.kind != "absmax":
        entry["range"] = str(fmt.scale.range)
    if fmt.dialect != "te":
        entry["dialect"] = fmt.dialect
    return entry
