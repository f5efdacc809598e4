"""The key `formats`: how numbers are stored in few bits, by name, and whatever is stored in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from qgraph.errors import FormatError
from qgraph.formats import (
    ELEMENTS,
    NAMED,
    NEAREST,
    SCALE_ROUNDINGS,
    Block,
    BlockFormat,
    Range,
    Rounding,
    ScaleRounding,
    find_element,
    make_format,
    make_scale,
    parse_format,
)
from qgraph.policy.file.document import Document, Path
from qgraph.policy.file.entry import FileEntry, optional, required
from qgraph.policy.file.format_values import BlockShape, ElementName, RangeText, ScaleName
from qgraph.policy.file.values import RoundingText, read_word
from qgraph.policy.file.words import did_you_mean, one_line
from qgraph.policy.key import Key, Reading, nothing

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

# The MX dialects are roundings of a power of two; nothing else differs.
_MX_DIALECTS: dict[str, ScaleRounding] = {"ocp": "floor", "rceil": "rceil"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a tensor that waits in memory is stored; no format means as it is."""

    format: BlockFormat | None = None
    rounding: Rounding = NEAREST

    @property
    def draws(self) -> bool:
        """Whether codes or scales take random bits."""
        scaled = self.format is not None and self.format.scale.random
        return self.rounding.random or scaled

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {"format": self.format and str(self.format), "rounding": str(self.rounding)}

    @property
    def name(self) -> str:
        """The format as a policy file names it."""
        return "high" if self.format is None else str(self.format)

    @property
    def entry(self) -> object:
        """The format as a policy file names it, with its rounding if that is not the usual one."""
        rounding = str(self.rounding)
        return (
            self.name if self.rounding == NEAREST else {"format": self.name, "rounding": rounding}
        )

    @property
    def text(self) -> str:
        """The format and its rounding in a few words."""
        return self.name + ("" if self.rounding == NEAREST else f" ({self.rounding})")


class FormatEntry(FileEntry):
    """How a tensor is stored in few bits."""

    example: ClassVar[object] = {"element": "e2m1", "block": [1, 32], "scale": "ue8m0"}
    element: ElementName = required(
        "The number format of one element: a name, the fields of a format, or a list of values.",
        "e2m1",
    )
    block: BlockShape = optional(
        "The elements that share one scale: [across, along] the axis the product sums over, "
        "row (that whole axis), column (the whole other axis), or tensor (the default).",
        [1, 16],
        Block(across=None, along=None),
    )
    scale: ScaleName = required(
        "The number format of a block's scale: a float such as e4m3 or ue5m3, a power of two "
        "(ue8m0), fp32, or none.",
        "e4m3",
    )
    scale_rounding: ScaleRounding | None = optional(
        "How a scale is rounded. ue8m0: rceil (up, so that nothing saturates; the default), floor, "
        "ceil, even. Floats: nearest (the default), up, down, stochastic. fp32: pow2.",
        "rceil",
    )
    tensor_scale: Literal["fp32", "fp32-row"] | None = optional(
        "One more scale for the whole tensor, or for each row, above scales of few bits.", "fp32"
    )
    range: RangeText = optional(
        "Which magnitude of a block the largest code stands for: absmax (of integers with a floor: "
        "absmax+floor1e-5), p99.9 (a percentile), "
        "mse (searched), rms (QuEST), 4over6, fixed6 (a constant).",
        "absmax",
        Range(),
    )
    rounding: RoundingText = optional(
        "How an operand that names this format is rounded, unless it says so itself.",
        "stochastic",
        NEAREST,
    )
    dialect: Literal[
        "te", "torchao_ptq", "modelopt", "quartet2", "qutlass", "torchao", "ocp", "rceil"
    ] = optional("Whose rules find the scales, where implementations differ.", "te", "te")


def _fields(value: object) -> object:
    return written_format(read_word(parse_format, value)) if isinstance(value, str) else value


Format = Annotated[FormatEntry, BeforeValidator(_fields, json_schema_input_type=str | FormatEntry)]


def named_format(value: object) -> object:
    """Read a format's name alone as an entry that says nothing else."""
    return {"format": value} if isinstance(value, str) else value


class StoredEntry(FileEntry):
    """A format and how numbers are rounded to it."""

    example: ClassVar[object] = "int8/row/fp32"
    format: str = required(
        "A name from `formats`, high, or any format's own name or text form.", "high"
    )
    rounding: RoundingText = optional(
        "nearest (ties to even), stochastic, or any other mode `qgraph formats` lists.",
        "stochastic",
        NEAREST,
    )


StoredFormat = Annotated[
    StoredEntry, BeforeValidator(named_format, json_schema_input_type=str | StoredEntry)
]


def _resolve(entries: Mapping[str, FormatEntry], reading: Reading) -> dict[str, Stored]:
    return {
        name: Stored(format=_format(name, entry, reading.document), rounding=entry.rounding)
        for name, entry in entries.items()
    }


def _format(name: str, entry: FormatEntry, document: Document) -> BlockFormat:
    path: Path = ("formats", name)
    if name == "high":
        fix = "choose another name"
        raise document.fault(path, "high stands for no format at all", fix, at_key=True)
    rounding, dialect = entry.scale_rounding, str(entry.dialect)
    if dialect in _MX_DIALECTS:
        rounding = rounding or _MX_DIALECTS[dialect]
        if not entry.scale.endswith("m0") or rounding != _MX_DIALECTS[dialect]:
            problem = (
                f"the dialect {dialect} speaks of ue8m0 scales, rounded {_MX_DIALECTS[dialect]}"
            )
            fix = "write scale: ue8m0 and no scale_rounding"
            raise document.fault((*path, "dialect"), problem, fix)
        dialect = "te"
    try:
        scale = make_scale(entry.scale, rounding, entry.range)
    except FormatError as error:
        where = (*path, "scale_rounding")
        raise document.fault(where, error.problem, error.fix, at_key=True) from None
    try:
        return make_format(
            element=find_element(entry.element), block=entry.block, scale=scale,
            tensor_scale=entry.tensor_scale or "none", dialect=dialect,
        )  # fmt: skip
    except FormatError as error:
        raise document.fault(path, error.problem, error.fix) from None


def find_format(name: str, path: Path, reading: Reading) -> BlockFormat | None:
    """Return the format of a name or text form, None for high.

    Raises: PolicyError at `path` if it is neither declared, nor has a name or form of its own.
    """
    declared = reading.of(FORMATS_KEY)
    if name in declared or name == "high":
        return declared[name].format if name in declared else None
    if name not in NAMED and "/" not in name:
        fix = did_you_mean(name, [*declared, "high"])
        near = did_you_mean(name, NAMED)
        if not fix.startswith("did you mean") and near.startswith("did you mean"):
            fix = near
        elif name in ELEMENTS:
            fix = f"an element alone has no scale: write {name}/row/fp32, or {name}/1x32/ue8m0"
        raise reading.document.fault(path, f"unknown format '{one_line(name)}'", fix)
    try:
        return parse_format(name)
    except FormatError as error:
        raise reading.document.fault(path, one_line(error.problem), error.fix) from None


def check_rounding(stored: Stored, path: Path, document: Document) -> None:
    """Check that there is a format to round to.

    Raises: PolicyError at `path` if there is none.
    """
    if stored.format is None and stored.rounding != NEAREST:
        problem = f"{stored.rounding.mode} rounding needs a format to round to"
        raise document.fault(path, problem, "name a format, or remove rounding")


def check_waiting(stored: Stored, path: Path, document: Document) -> None:
    """Check that a tensor can wait in memory so.

    Raises: PolicyError at `path` if it cannot.
    """
    check_rounding(stored, path, document)
    if stored.format is not None and stored.format.scale.range.kind == "delayed":
        problem = f"{stored.format} keeps a history of steps, which only operands of products have"
        raise document.fault(path, problem, "use the range absmax")


def read_stored(entry: StoredEntry, path: Path, reading: Reading) -> Stored:
    """Return how an entry at `path` stores a tensor that waits in memory.

    Raises: PolicyError if its format is unknown, or one that no tensor can wait in.
    """
    where = (*path, "format") if (*path, "format") in reading.document.values else path
    found = Stored(format=find_format(entry.format, where, reading), rounding=entry.rounding)
    check_waiting(found, path, reading.document)
    return found


def written_format(fmt: BlockFormat) -> dict[str, object]:
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
    if fmt.scale.range != Range():
        entry["range"] = str(fmt.scale.range)
    if fmt.dialect != "te":
        entry["dialect"] = fmt.dialect
    return entry


def _written(declared: object, policy: Policy) -> object:
    return {str(o.format): written_format(o.format) for o in policy.operands if o.format}


FORMATS_KEY: Key[dict[str, Stored]] = Key(
    module=__name__,
    name="formats",
    entry=dict[str, Format],
    description="Number formats by name: fields, or the text form or name of one (`qgraph formats`).",
    example={"fp8": {"element": "e4m3", "block": "tensor", "scale": "fp32"}},
    default={},
    extends="names",
    resolve=_resolve,
    written=_written,
    numbers=nothing,
)
