"""The picture of what a budget buys: bits or FLOPs kept against the gradient's error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qgraph.errors import ArtifactError


@dataclass(frozen=True, kw_only=True)
class Front:
    """Points (cost, error): the best of each budget, random policies, each format everywhere, the choice."""

    kind: str  # keep or bits
    best: Sequence[tuple[float, float]]
    random: Sequence[tuple[float, float]]
    uniform: dict[str, tuple[float, float]]
    chosen: tuple[float, float] | None
    measured: float | None  # the choice's error when it ran


def plot_front(front: Front, title: str, ylabel: str, file: str) -> None:
    """Write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    percent = 100 if front.kind == "keep" else 1
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.set_title(title, fontsize=11)
    best = sorted(front.best)
    axes.plot(
        [percent * x for x, _ in best],
        [y for _, y in best],
        "o-",
        markersize=4,
        label="best for the budget",
    )
    if front.random:
        axes.plot(
            [percent * x for x, _ in front.random], [y for _, y in front.random], "x", color="0.5",
            label="random, same budget",
        )  # fmt: skip
    for number, (name, (x, y)) in enumerate(front.uniform.items()):
        axes.plot(
            percent * x, y, "sDv^<>p*"[number % 8], color=f"C{2 + number % 7}", label=f"all {name}"
        )
    if front.chosen:
        x, y = percent * front.chosen[0], front.chosen[1]
        axes.plot(
            x, y, "o", markersize=11, fillstyle="none", color="C1", label="the policy, predicted"
        )
        if front.measured is not None:
            axes.plot(
                x, front.measured, "P", markersize=9, color="C1", label="the policy, measured"
            )
    axes.set(
        xlabel="product FLOPs kept high [%]"
        if front.kind == "keep"
        else "mean bits of an operand element",
        ylabel=ylabel,
    )
    values = [y for _, y in (*best, *front.random, *front.uniform.values()) if y > 0]
    if values and max(values) / min(values) > 30:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    try:
        figure.savefig(file, dpi=130, format="png")
    except OSError as problem:
        raise ArtifactError(f"{file}: writing failed: {problem.strerror}", "make room") from problem
    finally:
        plt.close(figure)
