"""What an experiment found, for people: a table, a page, a plot."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from qgraph.experiments.experiment import experiment_names
from qgraph.experiments.reproducing import Outcome
from qgraph.experiments.verdict import CONTRADICTED, NOT_VISIBLE, REPRODUCED, twin_noise

MARKS = {REPRODUCED: "yes", NOT_VISIBLE: "not visible", CONTRADICTED: "NO"}


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return the head and rows of the table: each arm's metrics, and the first's differences.

    Differences are those to the baseline with the same seed.
    """
    experiment = outcome.experiment
    metric = experiment.metrics[0]
    head = ["arm", *experiment.metrics, f"{metric} - baseline's, by seed"]
    rows = []
    for arm, seeds in outcome.results.items():
        means = [fmean(run[m] for run in seeds.values()) for m in experiment.metrics]
        base = outcome.results[experiment.baseline]
        gaps = [_signed(run[metric] - base[seed][metric]) for seed, run in seeds.items()]
        cells = [_number(mean) for mean in means]
        rows.append([arm, *cells, "baseline" if arm == experiment.baseline else " ".join(gaps)])
    return head, rows


def noise_text(outcome: Outcome) -> str:
    """Return what is said of the noise of a run; empty without a twin."""
    experiment = outcome.experiment
    if not experiment.twin:
        return ""
    metric = experiment.metrics[0]
    noise = twin_noise(experiment, outcome.results, metric)
    return (
        f"noise: {metric} moves by {noise:.4f} (root mean square) when the initial weights change "
        f"by 1% ({experiment.twin})"
    )


def finding_rows(outcome: Outcome) -> list[list[str]]:
    """Return the rows of the verdicts: the words, mean difference, noise, verdict."""
    return [
        [f.expectation.says, _signed(f.mean), _number(f.noise), MARKS[f.verdict]]
        for f in outcome.findings
    ]


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the page of results, in markdown."""
    python = ".".join(platform.python_version_tuple()[:2])
    lines = [
        "# The papers' experiments on a CPU",
        "",
        "Written by `qgraph reproduce NAMES --page FILE`; `--all` stands for all names.",
        f"torch {torch.__version__}, Python {python}, one thread. Text: the standard library's",
        "sources, as bytes; losses in nats per byte. A difference counts if its mean over seeds is",
        "above the noise: the half width of its 95% interval by Student's t, and twice the error of a",
        "mean of as many distances between baselines whose initial weights differ by 1%.",
        "Settings, seeds, margins and this rule were fixed before the quantized runs shown here, initial",
        "weights by the noise of unquantized runs. Three seeds are few: what does not show may be there.",
        "",
        "| experiment | source | verdict | in detail |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        verdicts = [MARKS[f.verdict] for f in outcome.findings]
        detail = ", ".join(f"{verdicts.count(m)} {m}" for m in MARKS.values() if m in verdicts)
        e = outcome.experiment
        lines.append(f"| [{e.name}](#{e.name}) | {e.source} | {outcome.verdict} | {detail} |")
    left = sorted({*experiment_names()} - {outcome.experiment.name for outcome in outcomes})
    if left:
        lines += ["", f"Not run for this page: {', '.join(left)}."]
    for outcome in outcomes:
        lines += ["", *_section(outcome)]
    return "\n".join(lines) + "\n"


def _section(outcome: Outcome) -> list[str]:
    e = outcome.experiment
    settings = ", ".join(f"{key} {value}" for key, value in e.settings.items())
    head, rows = table(outcome)
    lines = [
        f"## {e.name}", "", f"{e.title}. Source: {e.source}.", "", f"**Claim.** {e.claim}", "",
        f"**Verdict: {outcome.verdict}.** {e.limits}", "",
        f"Measure: {e.measure}; {settings}; seeds {', '.join(map(str, e.seeds))}.", "",
        *_markdown(head, rows), "",
    ]  # fmt: skip
    if noise := noise_text(outcome):
        lines += [f"{noise[0].upper()}{noise[1:]}.", ""]
    findings = ["expected", "mean difference", "noise", "shown"]
    return lines + _markdown(findings, finding_rows(outcome))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def plot(outcome: Outcome, path: Path) -> None:
    """Write a PNG: the first metric of each arm, a dot a seed, and the band of noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    e = outcome.experiment
    metric, arms = e.metrics[0], list(outcome.results)
    base = fmean(run[metric] for run in outcome.results[e.baseline].values())
    noise = twin_noise(e, outcome.results, metric)
    figure, axes = plt.subplots(figsize=(7.6, 1.6 + 0.3 * len(arms)), layout="constrained")
    axes.axvline(base, color="0.6", linewidth=1)
    if noise:
        axes.axvspan(base - noise, base + noise, color="0.9", label="noise of a run")
    for y, arm in enumerate(arms):
        values = [run[metric] for run in outcome.results[arm].values()]
        shown = [v for v in values if math.isfinite(v)]
        axes.plot(shown, [y] * len(shown), "o", color="tab:blue", alpha=0.5, markersize=5)
        if shown:
            axes.plot(fmean(shown), y, "|", color="tab:red", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set(xlabel=f"{metric}: dots are seeds, bars their means")
    axes.set_title(f"{e.title}\nverdict: {outcome.verdict}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    if noise:
        axes.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"
