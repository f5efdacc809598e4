"""The entries of a policy file that say what happens to an operand: formats, transforms, operands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from qgraph.formats import Block, Range, parse_format
from qgraph.formats.gradient import STRAIGHT
from qgraph.formats.rounding import NEAREST
from qgraph.formats.scale import ScaleRounding
from qgraph.policy.keys import CONFIG
from qgraph.policy.keys import key as _key
from qgraph.policy.keys import optional as _optional
from qgraph.policy.operands import Output, Signs, format_entry
from qgraph.policy.values import (
    BlockShape,
    ElementName,
    GradientText,
    Hadamard,
    RangeText,
    RoundingText,
    ScaleName,
    read_word,
)


class FormatEntry(BaseModel):
    """How a tensor is stored in few bits."""

    model_config = CONFIG
    element: ElementName = _key(
        "The number format of one element: a name, the fields of a format, or a list of values.",
        "e2m1",
    )
    block: BlockShape = _optional(
        "The elements that share one scale: [across, along] the axis the product sums over, "
        "row (that whole axis), column (the whole other axis), or tensor (the default).",
        [1, 16],
        Block(across=None, along=None),
    )
    scale: ScaleName = _key(
        "The number format of a block's scale: a float such as e4m3 or ue5m3, a power of two "
        "(ue8m0), fp32, or none.",
        "e4m3",
    )
    scale_rounding: ScaleRounding | None = _optional(
        "How a scale is rounded. ue8m0: rceil (up, so that nothing saturates; the default), floor, "
        "ceil, even. Floats: nearest (the default), up, down, stochastic. fp32: pow2.",
        "rceil",
    )
    tensor_scale: Literal["fp32", "fp32-row"] | None = _optional(
        "One more scale for the whole tensor, or for each row, above scales of few bits.", "fp32"
    )
    range: RangeText = _optional(
        "Which magnitude of a block the largest code stands for: absmax, p99.9 (a percentile), "
        "mse (searched), rms (QuEST), 4over6, fixed6 (a constant).",
        "absmax",
        Range(),
    )
    rounding: RoundingText = _optional(
        "How an operand that names this format is rounded, unless it says so itself.",
        "stochastic",
        NEAREST,
    )
    dialect: Literal["te", "torchao_ptq", "modelopt", "quartet2", "qutlass", "ocp", "rceil"] = (
        _optional("Whose rules find the scales, where implementations differ.", "te", "te")
    )


def _as_format(value: object) -> object:
    return format_entry(read_word(parse_format, value)) if isinstance(value, str) else value


Format = Annotated[
    FormatEntry, BeforeValidator(_as_format, json_schema_input_type=str | FormatEntry)
]


class TransformEntry(BaseModel):
    """A rotation of both operands of a product, which leaves the product as it was."""

    model_config = CONFIG
    hadamard: Hadamard = _key(
        "Elements in one block of the Hadamard rotation; none for no rotation.", 16
    )
    signs: Signs = _optional(
        "Random signs: te (Transformer Engine's fixed sixteen), none, run (drawn once, from seed), "
        "site (for each product), or step (for each product, anew each step).",
        "te",
        "none",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = _optional(
        "What signs of run and site are drawn from.", 0, 0
    )
    output: Output = _optional("What the rotated values are rounded to.", "bf16", "bf16")


class OperandEntry(BaseModel):
    """What happens to one operand."""

    model_config = CONFIG
    format: str = _key(
        "A name from `formats`, high, or any format's own name or text form.", "high"
    )
    rounding: RoundingText | None = _optional(
        "nearest (ties to even), stochastic (up or down at random so that the mean is exact; "
        "stochastic:4 with 4 random bits), or any other mode `qgraph formats` lists. Left out, the "
        "format's own.",
        "stochastic",
    )
    gradient: GradientText = _optional(
        "The derivative of rounding in the backward, for operands of fprop: ste (straight through), "
        "clipped, spline, dge; with +absmax that of the scale too.",
        "ste",
        STRAIGHT,
    )
    transform: str | None = _optional("A name from `transforms`; both operands need it.", "rht")


def _as_entry(value: object) -> object:
    return {"format": value} if isinstance(value, str) else value


Operand = Annotated[
    OperandEntry, BeforeValidator(_as_entry, json_schema_input_type=str | OperandEntry)
]
