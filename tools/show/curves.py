"""Curves of a run for the report: losses that `qgraph train` wrote, and telemetry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qgraph.errors import ArtifactError

TELEMETRY = "qgraph-telemetry.jsonl"
METRICS = ("sqnr_db", "flushed", "clipped")
POINTS = 80  # of one curve; more would make the file large and show no more
Series = list[list[float]]
Telemetry = dict[tuple[str, str, str], dict[str, Series]]  # module, product, operand -> metric


def read_losses(source: str) -> dict[str, Any]:
    """Return what `qgraph train` wrote of its losses.

    Raises: ArtifactError if it cannot be read.
    """
    file = Path(source).expanduser() / "losses.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        losses = {str(k): [[s, v] for s, v in points] for k, points in found["losses"].items()}
        keys = ("baseline", "held_out", "gap_percent", "step_ratio")
        return {"policy": str(found["policy"]), "losses": losses} | {k: found.get(k) for k in keys}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read: {error!r}", "train again") from error


def find_telemetry(*folders: str) -> str | None:
    """Return the telemetry that lies in the first of `folders` that has one."""
    files = (Path(folder).expanduser() / TELEMETRY for folder in folders)
    return next((str(file) for file in files if file.is_file()), None)


def read_telemetry(file: str) -> Telemetry:
    """Return what each operand of each product measured over the steps; a half-written last line is left out.

    Raises: ArtifactError if the file is no telemetry.
    """
    found: Telemetry = {}
    try:
        for row in _rows(Path(file).expanduser()):
            series = found.setdefault((row["module"], row["product"], row["operand"]), {})
            for metric in METRICS:
                if row.get(metric) is not None:
                    series.setdefault(metric, []).append([int(row["step"]), float(row[metric])])
    except OSError as error:
        raise ArtifactError(
            f"{file}: cannot be read: {error.strerror}", "give a telemetry file"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file}: is no telemetry: {error!r}", f"give a {TELEMETRY}") from error
    if not found:
        raise ArtifactError(f"{file}: holds no telemetry", f"give a {TELEMETRY} of a run")
    return {
        key: {metric: thin(points) for metric, points in series.items()}
        for key, series in found.items()
    }


def means(telemetry: Telemetry) -> dict[str, Series]:
    """Return the mean SQNR over all modules, by product and operand."""
    sums: dict[str, dict[float, list[float]]] = {}
    for (_, product, operand), series in telemetry.items():
        for step, value in series.get("sqnr_db", []):
            sums.setdefault(f"{product}.{operand}", {}).setdefault(step, []).append(value)
    return {
        name: [[step, sum(values) / len(values)] for step, values in sorted(steps.items())]
        for name, steps in sorted(sums.items())
    }


def thin(points: Series) -> Series:
    """Return at most POINTS of a curve, its first and last among them."""
    if len(points) <= POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) - 1 and not line.endswith("\n"):
                return
            raise
        if "module" in row:
            yield row
