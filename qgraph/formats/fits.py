"""Which parts of a block format do not fit together, and what to write instead."""

from __future__ import annotations

from qgraph.errors import FormatError
from qgraph.formats.block import BlockFormat
from qgraph.formats.catalog import E2M1
from qgraph.formats.element import Codebook, IntFormat
from qgraph.formats.scale import Range

_TORCHAO = ("e4m3", "e5m2", "e4m3+b8+fnuz", "e5m2+b16+fnuz")


def check_format(fmt: BlockFormat) -> BlockFormat:
    """Return `fmt` if its parts fit together.

    Raises: FormatError saying which parts do not, and what to write.
    """
    for wrong, problem, fix in (*_clashes(fmt), *_dialect_clashes(fmt)):
        if wrong:
            raise FormatError(f"'{fmt}': {problem}", fix)
    return fmt


def _clashes(fmt: BlockFormat) -> tuple[tuple[bool, str, str], ...]:
    element, scale, top = fmt.element, fmt.scale, fmt.element.max
    ranged, lowest = scale.range.kind, scale.element.min_positive if scale.element else 0.0
    return (
        (
            fmt.two_level and not scale.element,
            f"a tensor scale goes above block scales of few bits, and these are {scale.name}",
            "write scale: e4m3, or leave tensor_scale out",
        ),
        (
            fmt.two_level and (fmt.block.along is None or fmt.block.across is None),
            "a tensor scale goes above scales of tiles",
            "write block: [1, 16], or leave tensor_scale out",
        ),
        (
            fmt.two_level
            and bool(scale.element)
            and top * (scale.element.max if scale.element else 1) > 1e38,
            f"the tensor scale cannot hold {element.name}'s largest value times {scale.name}'s",
            "choose an element or a scale of fewer exponent bits",
        ),
        (
            not fmt.two_level and bool(scale.element) and 1 / top < lowest / 2,
            (
                f"the scale {scale.name} cannot hold the ratio of ordinary values to "
                f"{element.name}'s largest: all would become zero"
            ),
            "write scale: fp32 or ue8m0, or add tensor_scale: fp32",
        ),
        (
            fmt.tensor_scale == "fp32-row" and fmt.block.across != 1,
            "one tensor scale a row goes above blocks of one row",
            "write block: [1, 16], or tensor_scale: fp32",
        ),
        (
            scale.kind == "none" and (str(fmt.block) != "tensor" or ranged != "absmax"),
            "without a scale there is no block and no range",
            "write block: tensor and no range, or a scale",
        ),
        (
            fmt.asymmetric and (scale.kind != "fp32" or ranged not in ("absmax",)),
            "a zero point goes with an fp32 scale and the range absmax",
            "write scale: fp32, or a symmetric integer",
        ),
        (
            bool(scale.range.floor)
            and not (isinstance(element, IntFormat) and scale.kind == "fp32"),
            "a floor under the range goes with an integer and an fp32 scale",
            "write range: absmax",
        ),
        (
            ranged.startswith("4over6") and element != E2M1,
            "4over6 chooses between the values 6 and 4 of e2m1",
            "write element: e2m1, or range: mse",
        ),
        (
            ranged.startswith("4over6") and not scale.element,
            "4over6 needs a scale that can take the factor 1.5",
            "write scale: e4m3, or range: absmax",
        ),
        (
            ranged in ("std", "rms") and element != E2M1,
            f"the range {ranged} is known for e2m1 only",
            "write element: e2m1, or range: mse",
        ),
        (
            scale.rounding == "eden" and fmt.dialect != "quartet2",
            "eden scales are the dialect quartet2's",
            "write dialect: quartet2",
        ),
        (
            ranged.startswith("4over6") and scale.random,
            "4over6 chooses between scales rounded to nearest",
            "leave scale_rounding out",
        ),
        (
            ranged == "delayed" and str(fmt.block) != "tensor",
            "a delayed range keeps one number for each tensor",
            "write block: tensor",
        ),
        (
            isinstance(element, Codebook) and element.min >= 0,
            "it has no value below zero, and operands have",
            "list negative values too",
        ),
    )


def _dialect_clashes(fmt: BlockFormat) -> tuple[tuple[bool, str, str], ...]:
    if fmt.dialect == "te":
        return ()
    if fmt.dialect == "torchao":
        return _torchao_clashes(fmt)
    scale, two = fmt.scale, fmt.two_level
    roundings = ("nearest", "eden") if fmt.dialect == "quartet2" else ("nearest",)
    plain = scale.name == "e4m3" and scale.rounding in roundings
    levels = {"torchao_ptq": "1 or 2", "modelopt": "2", "quartet2": "2", "qutlass": "1"}[
        fmt.dialect
    ]
    fits = plain and fmt.element == E2M1 and fmt.tensor_scale in ("none", "fp32")
    return (
        (
            not fits or str(fmt.block) != "1x16",
            f"the dialect {fmt.dialect} speaks of e2m1 in blocks of 16 with e4m3 scales",
            "write element: e2m1, block: [1, 16], scale: e4m3, or no dialect",
        ),
        (
            ("2" if two else "1") not in levels,
            f"the dialect {fmt.dialect} has {levels} level{'s' * (levels != '1')} of scales",
            "leave tensor_scale out" if two else "add tensor_scale: fp32",
        ),
        (
            scale.range.kind
            not in (("absmax", "4over6") if fmt.dialect == "quartet2" else ("absmax",)),
            f"the dialect {fmt.dialect} has no range '{scale.range}'",
            "leave the range or the dialect out",
        ),
    )


def _torchao_clashes(fmt: BlockFormat) -> tuple[tuple[bool, str, str], ...]:
    return (
        (
            fmt.element.name not in _TORCHAO,
            "the dialect torchao speaks of e4m3 and e5m2, as torch has them",
            f"write one of: {', '.join(_TORCHAO)}; or no dialect",
        ),
        (
            fmt.scale.kind != "fp32" or str(fmt.block) not in ("tensor", "row") or fmt.two_level,
            "the dialect torchao has one fp32 scale, for a tensor or for each row",
            "write block: tensor, or row, and scale: fp32",
        ),
        (
            fmt.scale.range != Range(),
            f"the dialect torchao has no range '{fmt.scale.range}'",
            "leave the range or the dialect out",
        ),
    )
