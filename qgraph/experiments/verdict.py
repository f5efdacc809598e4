"""Whether runs show what a paper says, given how much runs differ by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from qgraph.experiments.experiment import Expectation, Experiment

REPRODUCED, NOT_VISIBLE, CONTRADICTED = (
    "reproduced",
    "not visible at this scale",
    "contradicted",
)
Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm -> seed -> metric


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One expectation held against the runs: `differences` are those of each seed."""

    expectation: Expectation
    differences: tuple[float, ...]
    noise: float
    verdict: str

    @property
    def mean(self) -> float:
        """The mean difference over seeds."""
        return fmean(self.differences)


def judge(experiment: Experiment, results: Results) -> tuple[Finding, ...]:
    """Return a finding for each expectation.

    `less` is reproduced if the mean difference is above the noise, contradicted if it is as far
    below zero, else not visible. Noise is the larger of two: the half width of the 95% interval of the
    mean over seeds, by Student's t; and twice the error of a mean of so many differences that are each
    as large as those between the baseline and its twin. `equal` and `value` are reproduced within
    their margin, contradicted if beyond it by more than the noise.
    """
    return tuple(_finding(experiment, e, results) for e in experiment.expect)


def overall(findings: Sequence[Finding]) -> str:
    """Return one word for all: contradicted if any is, reproduced if all are."""
    verdicts = [finding.verdict for finding in findings]
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return REPRODUCED if set(verdicts) == {REPRODUCED} else NOT_VISIBLE


def twin_noise(experiment: Experiment, results: Results, metric: str) -> float:
    """Return the root mean square distance between the baseline and its twin; 0 without a twin."""
    if not experiment.twin:
        return 0.0
    pairs = zip(
        _values(results, (experiment.baseline,), metric),
        _values(results, (experiment.twin,), metric),
        strict=True,
    )
    return math.sqrt(fmean((a - b) ** 2 for a, b in pairs))


def _finding(experiment: Experiment, expectation: Expectation, results: Results) -> Finding:
    metric = expectation.metric
    sides = [_values(results, side, metric) for side in expectation.sides]
    if expectation.kind == "value":
        differences = tuple(v - expectation.value for v in sides[0])
    else:
        differences = tuple(b - a for a, b in zip(*sides, strict=True))
    twin = twin_noise(experiment, results, metric)
    noise = max(2 * twin / math.sqrt(len(differences)), _half_width(differences))
    mean = fmean(differences)
    if not math.isfinite(mean):
        worse = mean == math.inf and expectation.kind == "less"
        verdict = REPRODUCED if worse else CONTRADICTED
    elif expectation.kind == "less":
        verdict = REPRODUCED if mean > noise else CONTRADICTED if mean < -noise else NOT_VISIBLE
    elif abs(mean) <= expectation.within:
        verdict = REPRODUCED
    else:
        beyond = abs(mean) - expectation.within > noise
        verdict = CONTRADICTED if beyond else NOT_VISIBLE
    return Finding(expectation=expectation, differences=differences, noise=noise, verdict=verdict)


def _values(results: Results, arms: Sequence[str], metric: str) -> list[float]:
    """Return, for each seed, the mean of `metric` over `arms`."""
    seeds = results[arms[0]]
    return [fmean(results[arm][seed][metric] for arm in arms) for seed in seeds]


def _half_width(values: Sequence[float]) -> float:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return 0.0
    within = float(stdtrit(len(values) - 1, 0.975))  # Student's t: standard errors of 95% of means
    return within * stdev(values) / math.sqrt(len(values))
