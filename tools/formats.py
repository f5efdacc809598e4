"""qgraph formats: every number format and every word of a policy, or one format's limits, values and plot."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from qgraph.errors import FormatError
from qgraph.formats import find_element, parse_format
from qgraph.tools.show.format_facts import block_facts, element_facts, grid
from qgraph.tools.show.format_plot import check_file, plot_error
from qgraph.tools.show.format_words import lines, print_all
from qgraph.tools.show.screen import print_json, progress, width

LABELS = {
    "min": "smallest", "max": "largest", "min_normal": "smallest normal",
    "min_positive": "smallest above zero", "nan_codes": "NaN codes", "inf_codes": "infinity codes",
}  # fmt: skip


def formats(
    name: Annotated[
        str | None, typer.Argument(help="An element, or a block format in text form.")
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="Print every code's value.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Plot the values and the error.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the number formats and the words of a policy, or show the format NAME.

    For example: qgraph formats e4m3 --values, or: qgraph formats e2m1/1x16/e4m3/fp32 --plot fp4.png

    JSON keys: elements, roundings, scale_roundings, ranges, dialects, gradients; of NAME its limits,
    null where it has none, and with --values also grid ([code, value] pairs; nan, inf as strings).
    """
    if name is None:
        if values or plot is not None:
            raise FormatError("--values and --plot show one format", "write qgraph formats e4m3")
        print_all(as_json)
        return
    block = parse_format(name) if "/" in name else None
    element = block.element if block else find_element(name)
    if plot is not None:
        check_file(plot)
    facts = block_facts(block) if block else element_facts(element)
    codes: list[tuple[int, float | None]] = []
    with progress(1) as step:
        if values or plot is not None:
            step("loading torch")
            codes = grid(element)
        if plot is not None:
            plot_error(element, name, codes, plot)
    shown = codes
    if element.bits > 8:
        real = sorted(((v, c) for c, v in codes if v is not None and math.isfinite(v)))
        shown = [(c, v) for v, c in (*real[:16], *real[-16:])]
    if as_json:
        pairs = [[c, v if v is None or math.isfinite(v) else str(v)] for c, v in shown]
        print_json(facts | ({"grid": pairs} if values else {}))
        return
    rows = lines(_flat(facts))
    if values:
        count = (facts["element"] if block else facts)["distinct_values"]
        end = "" if element.bits <= 8 else "; the lowest 16 and the highest 16"
        rows += ["", f"{len(codes)} codes, {count} values{end}:", *_cells(shown, element.bits)]
    if plot is not None:
        rows.append(f"wrote {plot}")
    sys.stdout.write("\n".join(rows) + "\n")


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        label = prefix + LABELS.get(key, key.replace("_", " "))
        if key == "max" and facts.get("kind") == "codebook":
            label += " magnitude"
        if isinstance(value, dict):
            yield from _flat(value, f"{label} ")
        elif isinstance(value, list):
            yield label, f"{value[0]} to {value[1]}"
        elif value is not None:
            yield label, _exact(value) if isinstance(value, float) else str(value)


def _exact(value: float) -> str:
    """Return nine digits, which tell any two float32 numbers apart; and the power of two it is."""
    fraction, exponent = math.frexp(value)
    power = fraction == 0.5 and not -3 < exponent < 12
    return f"{value:.9g}" + (f" = 2**{exponent - 1}" if power else "")


def _cells(codes: list[tuple[int, float | None]], bits: int) -> list[str]:
    shown = ["unused" if v is None else f"{v:.9g}" for _, v in codes]
    pad = max(map(len, shown))
    cells = [
        f"0x{code:0{-(-bits // 4)}x} {code:0{bits}b} {text:>{pad}}"
        for (code, _), text in zip(codes, shown, strict=True)
    ]
    across = max(1, (width() + 3) // (len(cells[0]) + 3))
    return ["   ".join(cells[n : n + across]) for n in range(0, len(cells), across)]
