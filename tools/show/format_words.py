"""Every word a policy's formats may take, as `qgraph formats` lists them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import typer

from qgraph.formats import ELEMENTS, NAMED, ROUNDINGS, SCALE_ROUNDINGS
from qgraph.tools.show.format_facts import element_facts, short
from qgraph.tools.show.screen import print_json, width

GRAMMAR = {
    "[u]eXmY": "float: X exponent bits, Y mantissa bits, u without a sign",
    "  +b8, +b7.5": "its exponent bias",
    "  +ieee, +fn, +fnuz, +finite": "not numbers: the top exponent, one code a sign, -0, none",
    "  +flush": "no subnormals",
    "  +overflow": "to infinity or NaN, instead of the largest value",
    "intN, +full, +asymmetric": "N bits; without the lowest code, with it, with a zero point",
    "fixedI.F": "fixed point: I bits before the point, the sign one of them, and F after",
    "logN": "zero and signed powers of two, N bits",
    "powerN+a0.5": "sign(n)·|n/max|**(1/a), N bits",
    "list(-1,0,1)": "these values",
}
BLOCKS = {
    "element/block/scale": "e4m3/1x32/ue8m0-rceil; without a scale e8m3/tensor/none",
    "  block": "tensor, row, column, or a tile ACROSSxALONG: 1x16, ALONG on the summed axis",
    "  scale-rounding:range": "fp32-pow2, e4m3:4over6",
    "  /fp32, /fp32-row": "a second scale above: one a tensor, or one a row",
    "  @dialect": "e2m1/1x16/e4m3/fp32@modelopt",
}
SCALES = {
    "power": "ue2m0 to ue8m0",
    "float": "a float such as e4m3",
    "fp32": "fp32",
    "none": "none",
}
RANGES = {
    "absmax": "the largest magnitude",
    "absmax+floor1e-5": "the same, or 1e-5 if that is larger; of integers",
    "p99.9": "the magnitude above 99.9% of them",
    "mse": "of 20 shares of the largest, the one with the least squared error",
    "std, rms": "a multiple of the deviation, or the root mean square, for normal data",
    "4over6, 4over6_mse": "6 or 4, by absolute or squared error; with _448, scales up to 448, not 256",
    "fixed6": "that number",
    "delayed16": "the largest of the last 16 steps",
}  # fmt: skip
DIALECTS = {
    "te": "Transformer Engine, and what everything else follows; the default",
    "torchao_ptq": "torchao's inference format",
    "modelopt": "NVIDIA ModelOpt",
    "quartet2": "Quartet-II: eden scales",
    "qutlass": "QuTLASS: one level of scales",
    "torchao": "torchao's FP8 training",
}
GRADIENTS = {
    "ste": "straight through; the default",
    "clipped": "0 where the element saturates",
    "spline": "slope 2 midway between two values, 0 near them",
    "dge, dge:5:3": "differentiable estimator, k 5, at most 3",
    "+absmax": "after any: the scale's own derivative too",
}


def lines(pairs: Iterable[tuple[str, str]], indent: str = "") -> list[str]:
    """Return label and text in two columns, the text wrapped."""
    rows = list(pairs)
    pad = max(len(label) for label, _ in rows)
    start, room = " " * (len(indent) + pad + 2), max(width(), 60)
    return [
        line
        for label, text in rows
        for line in textwrap.wrap(
            f"{indent}{label:<{pad}}  {text}", room, subsequent_indent=start, break_on_hyphens=False
        )
    ]


def _words(table: dict[str, str]) -> list[str]:
    return [word for words in table for word in words.split(", ")]


def print_all(as_json: bool) -> None:
    """Print the catalog and every other word, as a table or as JSON."""
    elements = [element_facts(fmt) for fmt in ELEMENTS.values()]
    if as_json:
        words = {"named": NAMED, "ranges": RANGES, "dialects": DIALECTS, "gradients": GRADIENTS}
        names = {key: _words(table) for key, table in words.items()}
        laws = {"roundings": ROUNDINGS, "scale_roundings": SCALE_ROUNDINGS}
        print_json({"elements": elements, **laws, **names})
        return
    head = ("name", "bits", "largest", "smallest", "normal", "above 0", "bias", "NaN", "inf")
    keys = (
        "name", "bits", "max", "min", "min_normal", "min_positive", "bias", "nan_codes", "inf_codes",
    )  # fmt: skip
    rows = [head, *(tuple(short(facts[key]) for key in keys) for facts in elements)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:>{size}}" for cell, size in zip(row[1:], wide[1:], strict=True))
        typer.echo("  ".join((f"{row[0]:<{wide[0]}}", *cells)))
    sources: dict[str, list[str]] = {}
    for fmt in ELEMENTS.values():
        sources.setdefault(fmt.source, []).append(fmt.name)
    scales = {SCALES[kind]: ", ".join(words) for kind, words in SCALE_ROUNDINGS.items()}
    for title, table in {
        "normal, above 0: the smallest such; NaN, inf: how many codes. From:": {
            ", ".join(names): source for source, names in sources.items()
        },
        "Any other element, by its name:": GRAMMAR,
        "Block formats, in text form:": BLOCKS,
        "Scales and how they are rounded, the usual way first:": scales,
        "Ranges, the magnitude of a block that is mapped to the largest value:": RANGES,
        "Block formats with a name:": NAMED,
        "Dialects, whose rules find the scales:": DIALECTS,
        "Roundings (the random ones take their bits, 1 to 24: stochastic:4):": ROUNDINGS,
        "Gradients of rounding:": GRADIENTS,
    }.items():
        typer.echo("\n".join(("", title, *lines(table.items(), "  "))))
