"""qgraph formats: every number format and every word of a policy, or one format's limits, values and plot."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from qgraph.errors import ArtifactError, FormatError
from qgraph.formats import (
    ELEMENTS,
    ROUNDINGS,
    SCALE_ROUNDINGS,
    BlockFormat,
    Codebook,
    Element,
    FloatFormat,
    IntFormat,
    find_element,
    parse_format,
)
from qgraph.tools.screen import print_json, progress, width

FP32_MAX = 2.0**128 - 2.0**104

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
}
GRADIENTS = {
    "ste": "straight through; the default",
    "clipped": "0 where the element saturates",
    "spline": "slope 2 midway between two values, 0 near them",
    "dge, dge:5:3": "differentiable estimator, k 5, at most 3",
    "+absmax": "after any: the scale's own derivative too",
}
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
        _print_all(as_json)
        return
    block = parse_format(name) if "/" in name else None
    element = block.element if block else find_element(name)
    if plot is not None:
        _check_file(plot)
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
    lines = _lines(_flat(facts))
    if values:
        count = (facts["element"] if block else facts)["distinct_values"]
        end = "" if element.bits <= 8 else "; the lowest 16 and the highest 16"
        lines += ["", f"{len(codes)} codes, {count} values{end}:", *_cells(shown, element.bits)]
    if plot is not None:
        lines.append(f"wrote {plot}")
    sys.stdout.write("\n".join(lines) + "\n")


def element_facts(fmt: Element) -> dict[str, Any]:
    """Return what is known of an element format, None where it has no such thing."""
    real = fmt if isinstance(fmt, FloatFormat) else None
    distinct, nan, inf = (1 << fmt.bits) if isinstance(fmt, IntFormat) else 0, 0, 0
    if isinstance(fmt, IntFormat):
        distinct -= fmt.range == "symmetric"
    elif isinstance(fmt, Codebook):
        distinct = len(fmt.values)
    else:
        signs, steps = 1 + fmt.signed, 1 << fmt.mantissa_bits
        inf = signs if fmt.specials == "ieee" else 0
        nan = {"ieee": inf * (steps - 1), "nan_only": signs, "fnuz": 1, "none": 0}[fmt.specials]
        again = fmt.signed and fmt.specials != "fnuz"  # -0 is the value 0
        flushed = 0 if fmt.subnormals else signs * (steps - 1)
        distinct = (1 << fmt.bits) - nan - inf - again - flushed
    low = real.min_exponent if real else math.frexp(fmt.min_positive)[1] - 1
    over = "infinity" if inf else "NaN"
    return {
        "name": fmt.name,
        "kind": "float" if real else "integer" if isinstance(fmt, IntFormat) else "codebook",
        "bits": fmt.bits,
        "exponent_bits": real and real.exponent_bits, "mantissa_bits": real and real.mantissa_bits,
        "max": fmt.max, "min": fmt.min,
        "min_normal": real and real.min_normal, "min_positive": fmt.min_positive,
        "bias": real and (real.bias if real.offset is None else real.offset),
        "unit": None if isinstance(fmt, Codebook) else fmt.unit,
        "exponents": [low, fmt.max_exponent],
        "steps_per_binade": real and 1 << real.mantissa_bits,
        "distinct_values": distinct, "nan_codes": nan, "inf_codes": inf,
        "beyond_the_largest": over if real and not real.saturate else "saturates",
        "source": fmt.source or None,
    }  # fmt: skip


def block_facts(fmt: BlockFormat) -> dict[str, Any]:
    """Return what is known of a block format; the ratio is that of two magnitudes in one block."""
    element, scale = fmt.element, fmt.scale
    least, top = element.min_positive, max(element.max, -element.min)
    if isinstance(element, Codebook):
        least = min(abs(value) for value in element.values if value)
    ratio = (1 << element.bits) - 1 if fmt.asymmetric else top / least
    power = math.ldexp(1.0, (1 << (scale.exponent_bits - 1)) - 1) if scale.exponent_bits else None
    ends = {"power": (power, power and 1 / power), "fp32": (FP32_MAX, 2.0**-149)}
    if scale.element:
        ends["float"] = (scale.element.max, scale.element.min_positive)
    largest, smallest = ends.get(scale.kind, (None, None))
    return {
        "name": str(fmt),
        "bits_per_element": fmt.bits_per_element,
        "block": {"shape": str(fmt.block), "across": fmt.block.across, "along": fmt.block.along},
        "scale": {
            "format": scale.name, "rounding": scale.rounding, "range": str(scale.range),
            "bits": scale.bits, "max": largest, "min_positive": smallest,
        },
        "tensor_scale": fmt.tensor_scale,
        "dialect": fmt.dialect,
        "largest_over_smallest": float(ratio),
        "element": element_facts(element),
    }  # fmt: skip


def grid(fmt: Element) -> list[tuple[int, float | None]]:
    """Return every code and its value, None for a code that is never written."""
    import torch

    from qgraph.numerics import decode

    found = decode(torch.arange(1 << fmt.bits, dtype=torch.int32), fmt).tolist()
    end = len(fmt.values) if isinstance(fmt, Codebook) else len(found)
    symmetric = isinstance(fmt, IntFormat) and fmt.range == "symmetric"
    unused = {*range(end, len(found)), *([len(found) // 2] if symmetric else [])}
    return [(code, None if code in unused else value) for code, value in enumerate(found)]


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


def _lines(pairs: Iterable[tuple[str, str]], indent: str = "") -> list[str]:
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


def _cells(codes: list[tuple[int, float | None]], bits: int) -> list[str]:
    shown = ["unused" if v is None else f"{v:.9g}" for _, v in codes]
    pad = max(map(len, shown))
    cells = [
        f"0x{code:0{-(-bits // 4)}x} {code:0{bits}b} {text:>{pad}}"
        for (code, _), text in zip(codes, shown, strict=True)
    ]
    across = max(1, (width() + 3) // (len(cells[0]) + 3))
    return ["   ".join(cells[n : n + across]) for n in range(0, len(cells), across)]


def _words(table: dict[str, str]) -> list[str]:
    return [word for words in table for word in words.split(", ")]


def _print_all(as_json: bool) -> None:
    elements = [element_facts(fmt) for fmt in ELEMENTS.values()]
    if as_json:
        words = {"ranges": RANGES, "dialects": DIALECTS, "gradients": GRADIENTS}
        names = {key: _words(table) for key, table in words.items()}
        laws = {"roundings": ROUNDINGS, "scale_roundings": SCALE_ROUNDINGS}
        print_json({"elements": elements, **laws, **names})
        return
    head = ("name", "bits", "largest", "smallest", "normal", "above 0", "bias", "NaN", "inf")
    keys = (
        "name", "bits", "max", "min", "min_normal", "min_positive", "bias", "nan_codes", "inf_codes",
    )  # fmt: skip
    rows = [head, *(tuple(_short(facts[key]) for key in keys) for facts in elements)]
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
        "Dialects, whose rules find the scales:": DIALECTS,
        "Roundings (the random ones take their bits, 1 to 16: stochastic:4):": ROUNDINGS,
        "Gradients of rounding:": GRADIENTS,
    }.items():
        typer.echo("\n".join(("", title, *_lines(table.items(), "  "))))


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    text = f"{value:.6g}"
    return text if len(text) <= 8 else f"{value:.3g}"


def _check_file(file: str) -> None:
    """Raise ArtifactError where the plot cannot be written."""
    path = Path(file)
    wrong = {
        "the name does not end in .png": path.suffix.lower() != ".png",
        "is a directory": path.is_dir(),
        f"no such folder as {path.parent}": not path.parent.is_dir(),
        "the folder is read-only": path.parent.is_dir() and not os.access(path.parent, os.W_OK),
    }
    if problem := next((text for text, found in wrong.items() if found), None):
        fix = "choose another --plot, such as format.png"
        raise ArtifactError(f"{file}: cannot write the plot: {problem}", fix)


def plot_error(fmt: Element, name: str, codes: list[tuple[int, float | None]], file: str) -> None:
    """Write a PNG: the values, and below them the error of rounding to nearest."""
    import matplotlib
    import numpy as np
    import torch

    from qgraph.numerics import round_to

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values = np.unique([v for _, v in codes if v is not None and math.isfinite(v)])
    low, top = fmt.min_positive, float(values[-1])
    start, end = np.log2([max(low / 4, 2.0**-149), min(2 * top, FP32_MAX)])
    x = torch.tensor(2 ** np.linspace(start, end, 1200 * 200), dtype=torch.float32)
    error = ((round_to(x, fmt).double() - x.double()).abs() / x.double()).numpy()
    peaks = 100 * error.reshape(1200, 200).max(1)  # a wide format has many steps in one pixel
    place = x.double().numpy().reshape(1200, 200)[:, 100]

    figure, (line, below) = plt.subplots(
        2, figsize=(9, 6), height_ratios=(1, 2.8), layout="constrained"
    )
    line.set_title(f"{name}: {len(values)} values in {fmt.bits} bit{'s' * (fmt.bits > 1)}")
    line.plot(values, np.zeros(len(values)), "|", markersize=34, markeredgewidth=0.8)
    line.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    line.margins(x=0.02)
    if top / low > 1000:
        line.set_xscale("symlog", linthresh=low, linscale=0.5)
        first, last = (math.floor(math.log10(end)) for end in (low, top))
        decades = [10.0**n for n in range(last, first, -max(1, math.ceil((last - first) / 6)))]
        line.set_xticks([*(-d for d in decades if values[0] < 0), 0, *decades])
    line.set(yticks=[], ylim=(-1, 1), xlabel="value, in units of the scale")

    below.loglog(place, peaks, linewidth=0.9, label="rounding to nearest")
    below.axvline(low, color="C2", linestyle=":", label=f"smallest above zero, {_short(low)}")
    if isinstance(fmt, FloatFormat):
        half = 100 / (1 + 2.0 ** (fmt.mantissa_bits + 1))
        normal = fmt.min_normal
        below.axvline(
            normal, color="C4", linestyle="-.", label=f"smallest normal, {_short(normal)}"
        )
        below.axhline(half, color="C3", linestyle="--", label=f"half a step at most, {half:.3g}%")
    below.axvline(top, color="C1", linestyle=":", label=f"largest, {_short(top)}")
    inside = peaks[(place >= low) & (place <= top) & (peaks > 0)]
    floor = np.percentile(inside, 10) / 4 if len(inside) else 0.1
    below.set(
        ylim=(floor, 1.6 * max(100, peaks[np.isfinite(peaks)].max())),
        xlabel="magnitude x, in units of the scale",
        ylabel="relative error |round(x) − x| / x [%]",
    )
    below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    below.grid(alpha=0.3)
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    try:
        figure.savefig(file, dpi=140, format="png")
    except OSError as problem:
        raise ArtifactError(f"{file}: writing failed: {problem.strerror}", "make room") from problem
    finally:
        plt.close(figure)
