"""Running an experiment: every arm and seed once, what is done kept, then the verdict."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qgraph.errors import ArtifactError
from qgraph.experiments.experiment import Experiment
from qgraph.experiments.measures import EDITIONS, MEASURES
from qgraph.experiments.verdict import Finding, Results, judge, overall
from qgraph.ops import state

WITHOUT_POLICY = ("tensor", "law", "decode")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An experiment with its runs and verdict. `reused` counts the runs found from before."""

    experiment: Experiment
    results: Results
    findings: tuple[Finding, ...]
    reused: int

    @property
    def verdict(self) -> str:
        """One word for all findings."""
        return overall(self.findings)


def reproduce(experiment: Experiment, folder: Path, say: Say, detail: Say | None = None) -> Outcome:
    """Run every arm of `experiment` with every seed, on one thread, and judge the claim.

    Each finished run is one JSON file under `folder`/runs: a run found there with the same
    settings, policy, seed and torch is not run again. `say` is told of each run, `detail` of what
    goes on within one.

    Raises: ArtifactError if the folder cannot be written.
    """
    runs = folder / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "give --out a directory that can be written"
        raise ArtifactError(f"{folder}: {error.strerror}", fix) from error
    results: dict[str, dict[int, dict[str, float]]] = {}
    reused = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same numbers on every machine with this torch
    try:
        for arm in experiment.arms:
            for seed in experiment.seeds:
                file = runs / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', arm)}-{seed}.json"
                key = run_key(experiment, arm, seed)
                found = _read(file, key)
                reused += found is not None
                say(f"{arm}, seed {seed}")
                if found is None:
                    found = MEASURES[experiment.measure](experiment, arm, seed, detail or _quiet)
                    _write(file, {"key": key, "arm": arm, "seed": seed, "metrics": found})
                results.setdefault(arm, {})[seed] = found
            state.EXPERIMENT_MODELS.clear()
            torch.compiler.reset()
    finally:
        torch.set_num_threads(threads)
        state.EXPERIMENT_MODELS.clear()
    return Outcome(
        experiment=experiment, results=results, findings=judge(experiment, results), reused=reused
    )


def run_key(experiment: Experiment, arm: str, seed: int) -> str:
    """Return a fingerprint of all that decides a run's numbers."""
    entry = dict(experiment.arms[arm])
    policy = "" if experiment.measure in WITHOUT_POLICY else experiment.policy(arm).fingerprint()
    facts = [
        experiment.measure, dict(experiment.settings), entry, policy, seed, torch.__version__,
    ]  # fmt: skip
    facts += [edition] if (edition := EDITIONS.get(experiment.measure)) else []
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    experiment = outcome.experiment
    return {
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "claim": experiment.claim,
        "seeds": list(experiment.seeds),
        "settings": dict(experiment.settings),
        "results": {
            arm: {str(seed): metrics for seed, metrics in seeds.items()}
            for arm, seeds in outcome.results.items()
        },
        "findings": [
            {
                "says": f.expectation.says,
                "metric": f.expectation.metric,
                "differences": list(f.differences),
                "mean": f.mean,
                "noise": f.noise,
                "verdict": f.verdict,
            }
            for f in outcome.findings
        ],
        "verdict": outcome.verdict,
        "limits": experiment.limits,
        "reused": outcome.reused,
    }


def _quiet(text: str) -> None:
    pass


def _read(file: Path, key: str) -> dict[str, float] | None:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.get("key") != key:
        return None
    return {str(name): float(value) for name, value in data["metrics"].items()}


def _write(file: Path, data: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
