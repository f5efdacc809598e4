"""What happens to one operand of a product, and the key `transforms`: rotations that operands name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from qgraph.formats import NEAREST, STRAIGHT, Gradient, parse_gradient
from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import FileEntry, optional, required, value_fault
from qgraph.policy.file.values import RoundingText, read_word, word_schema
from qgraph.policy.file.words import did_you_mean, one_line
from qgraph.policy.key import Key, Reading, nothing
from qgraph.policy.keys.format import FORMATS_KEY, Stored, check_rounding, find_format, named_format

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

Signs = Literal["te", "none", "run", "site", "step"]
Output = Literal["bf16", "fp32"]
_HADAMARDS = (2, 4, 8, 16, 32, 64, 128, 256)


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

    @property
    def entry(self) -> dict[str, object]:
        """The transform as a policy file writes it; all that changes numbers, which its name does not."""
        return {
            "hadamard": self.hadamard,
            "signs": self.signs,
            "output": self.output,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class OperandPolicy(Stored):
    """What happens to one operand of a product; no format means high precision."""

    transform: Transform | None = None
    gradient: Gradient = STRAIGHT

    @property
    def quantizes(self) -> bool:
        """Whether the operand is stored in fewer bits."""
        return self.format is not None

    @property
    def random(self) -> bool:
        """Whether anything takes random bits each step: codes, scales or rotation signs."""
        return self.draws or (self.transform is not None and self.transform.signs == "step")

    @property
    def changes(self) -> bool:
        """Whether anything happens to the operand at all."""
        return self.format is not None or self.transform is not None

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        transform = self.transform and self.transform.entry
        return {**super().facts, "transform": transform, "gradient": str(self.gradient)}

    @property
    def entry(self) -> object:
        """The operand as a policy file writes it."""
        if self == OperandPolicy(format=self.format):
            return self.name
        entry = {
            "format": self.name,
            "rounding": str(self.rounding),
            "gradient": str(self.gradient),
        }
        return entry | ({"transform": self.transform.name} if self.transform else {})

    @property
    def text(self) -> str:
        """The operand in a few words."""
        extra = [self.transform.name] if self.transform else []
        extra += [str(self.rounding)] if self.rounding != NEAREST else []
        return self.name + (f" ({', '.join(extra)})" if extra else "")


HIGH = OperandPolicy()


def _hadamard(value: object) -> int:
    if value == "none":
        return 0
    if not isinstance(value, int) or value not in _HADAMARDS:
        raise value_fault(f"no rotation has '{value}' elements", "write a power of two, 2 to 256")
    return value


def _seed(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise value_fault(f"'{value}' is no seed", "write a whole number from 0 on, below 2**32")
    return value


Seed = Annotated[
    int,
    PlainValidator(_seed),
    WithJsonSchema({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**32}),
]
Hadamard = Annotated[
    int, PlainValidator(_hadamard), WithJsonSchema({"enum": [*_HADAMARDS, "none"]})
]
GradientText = Annotated[
    Gradient,
    PlainValidator(lambda value: read_word(parse_gradient, value)),
    word_schema(r"(ste|clipped|spline|dge)(:[\d.]+)*(\+absmax)?"),
]


class TransformEntry(FileEntry):
    """A rotation of both operands of a product, which leaves the product as it was."""

    example: ClassVar[object] = {"hadamard": 16, "signs": "te"}
    hadamard: Hadamard = required(
        "Elements in one block of the Hadamard rotation; none for no rotation.", 16
    )
    signs: Signs = optional(
        "Random signs: te (Transformer Engine's fixed sixteen), none, run (drawn once, from seed), "
        "site (for each product), or step (for each product, anew each step).",
        "te",
        "none",
    )
    seed: Seed = optional("What signs of run and site are drawn from.", 0, 0)
    output: Output = optional("What the rotated values are rounded to.", "bf16", "bf16")


class OperandEntry(FileEntry):
    """What happens to one operand."""

    called: ClassVar[str] = "a format"
    format: str = required(
        "A name from `formats`, high, or any format's own name or text form.", "high"
    )
    rounding: RoundingText | None = optional(
        "nearest (ties to even), stochastic (up or down at random so that the mean is exact; "
        "stochastic:4 with 4 random bits), or any other mode `qgraph formats` lists. Left out, the "
        "format's own.",
        "stochastic",
    )
    gradient: GradientText = optional(
        "The derivative of rounding in the backward, for operands of fprop: ste (straight through), "
        "clipped, spline, dge; with +absmax that of the scale too.",
        "ste",
        STRAIGHT,
    )
    transform: str | None = optional("A name from `transforms`; both operands need it.", "rht")


OperandField = Annotated[
    OperandEntry, BeforeValidator(named_format, json_schema_input_type=str | OperandEntry)
]


def read_operand(entry: OperandEntry, path: Path, reading: Reading) -> OperandPolicy:
    """Return what happens to the operand at `path`.

    Raises: PolicyError if a name is unknown, or if its words do not fit together.
    """
    fmt = find_format(entry.format, (*path, "format"), reading)
    declared = reading.of(FORMATS_KEY).get(entry.format, Stored())
    stored = Stored(format=fmt, rounding=entry.rounding or declared.rounding)
    check_rounding(stored, (*path, "rounding"), reading.document)
    operand = OperandPolicy(
        format=fmt,
        rounding=stored.rounding,
        transform=_find_transform(entry.transform, path, reading),
        gradient=entry.gradient,
    )
    if fault := _gradient_fault(operand, str(path[-2])):
        raise reading.document.fault((*path, "gradient"), *fault, at_key=True)
    return operand


def _find_transform(name: str | None, path: Path, reading: Reading) -> Transform | None:
    if name is None:
        return None
    known = reading.of(TRANSFORMS_KEY)
    if name not in known:
        fix = did_you_mean(name, known) if known else "declare it under transforms:"
        problem = f"unknown transform '{one_line(name)}'"
        raise reading.document.fault((*path, "transform"), problem, fix)
    return known[name] if known[name].hadamard else None


def _gradient_fault(operand: OperandPolicy, role: str) -> tuple[str, str] | None:
    """Return why an operand of a product cannot have its gradient, and what to write instead."""
    gradient, fmt = operand.gradient, operand.format
    if gradient.straight:
        return None
    if role != "fprop":
        return f"{role} has no gradient of its own", "write it in fprop, or remove it"
    if fmt is None:
        problem = "the gradient of a quantizer needs a format"
        return problem, "name a format, or remove gradient"
    if operand.transform is not None:
        problem = "the gradient of a rotated operand is straight through"
        return problem, "remove gradient or transform"
    if fmt.scale.random or (gradient.absmax and operand.rounding.random):
        problem = f"the gradient {gradient} needs numbers that are not drawn at random"
        return problem, "round to nearest, or remove gradient"
    if gradient.absmax and str(fmt.scale.range) != "absmax":
        problem = f"+absmax differentiates the range absmax, and this one is {fmt.scale.range}"
        return problem, f"write {gradient.estimator}"
    return None


def _resolve(entries: Mapping[str, TransformEntry], reading: Reading) -> dict[str, Transform]:
    return {name: _transform(name, entry, reading) for name, entry in entries.items()}


def _transform(name: str, entry: TransformEntry, reading: Reading) -> Transform:
    if entry.signs == "te" and entry.hadamard not in (0, 16):
        problem = f"there are 16 te signs, and the rotation takes {entry.hadamard}"
        fix = "write hadamard: 16, or signs: none"
        raise reading.document.fault(("transforms", name, "signs"), problem, fix)
    if entry.seed and entry.signs not in ("run", "site"):
        problem = f"signs of {entry.signs} are not drawn from a seed"
        fix = "remove seed, or write signs: run"
        raise reading.document.fault(("transforms", name, "seed"), problem, fix, at_key=True)
    return Transform(
        name=name, hadamard=entry.hadamard, signs=entry.signs, output=entry.output, seed=entry.seed
    )


def _written(declared: object, policy: Policy) -> object:
    transforms: dict[str, object] = {}
    for transform in (o.transform for o in policy.operands if o.transform):
        known = transforms.setdefault(transform.name, transform.entry)
        assert known == transform.entry, f"two transforms are called '{transform.name}'"
    return transforms


TRANSFORMS_KEY: Key[dict[str, Transform]] = Key(
    module=__name__,
    name="transforms",
    entry=dict[str, TransformEntry],
    description="Rotations by name.",
    example={"rht": {"hadamard": 16, "signs": "te"}},
    default={},
    extends="names",
    resolve=_resolve,
    written=_written,
    numbers=nothing,
)
