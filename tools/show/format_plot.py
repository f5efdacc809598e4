"""The picture of a number format: its values, and the error of rounding to them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from qgraph.errors import ArtifactError
from qgraph.formats import Element, FloatFormat
from qgraph.tools.show.format_facts import short

FP32_MAX = 2.0**128 - 2.0**104


def check_file(file: str) -> None:
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
    below.axvline(low, color="C2", linestyle=":", label=f"smallest above zero, {short(low)}")
    if isinstance(fmt, FloatFormat):
        half = 100 / (1 + 2.0 ** (fmt.mantissa_bits + 1))
        normal = fmt.min_normal
        below.axvline(normal, color="C4", linestyle="-.", label=f"smallest normal, {short(normal)}")
        below.axhline(half, color="C3", linestyle="--", label=f"half a step at most, {half:.3g}%")
    below.axvline(top, color="C1", linestyle=":", label=f"largest, {short(top)}")
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
