"""Telemetry: what each quantizer did in a step, as rows, in a file, and for reporters."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qgraph.errors import ArtifactError
from qgraph.ops import Record

Row = dict[str, Any]
METRICS = ("sqnr_db", "clipped", "flushed", "scale_min", "scale_max", "norm")


def rows_of(step: int, records: dict[str, Record]) -> list[Row]:
    """Return one row for each operand of each product that was quantized in a step.

    Keys: step, module, product, operand, format, sqnr_db (None without an error), clipped and flushed
    (shares of the elements, 0 to 1), scale_min and scale_max (what a block's scale is worth), norm
    (L2; of a grad_output it is the gradient's), shared_by (how many products read the quantizer).
    """
    rows = []
    for places, record in records.items():
        names = places.split("; ")
        for place in names:
            module, product, operand = place.split("|")
            rows.append(
                {
                    "step": step,
                    "module": module,
                    "product": product,
                    "operand": operand,
                    "format": record.format,
                    "sqnr_db": record.sqnr_db if math.isfinite(record.sqnr_db) else None,
                    "clipped": record.clipped / record.count,
                    "flushed": record.flushed / record.count,
                    "scale_min": record.scale_min,
                    "scale_max": record.scale_max,
                    "norm": record.norm,
                    "shared_by": len(names),
                }
            )
    return rows


def scalars_of(rows: Iterable[Row]) -> dict[str, float]:
    """Return the rows as reporters take them: `qgraph/<metric>/<product>.<operand>/<module>`."""
    return {
        f"qgraph/{metric}/{row['product']}.{row['operand']}/{row['module']}": row[metric]
        for row in rows
        for metric in METRICS
        if row[metric] is not None
    }


class TelemetryFile:
    """A JSONL file of one run: a line that says which, then one for each row and event.

    A resumed run keeps the lines up to the step it goes on from.

    Raises: ArtifactError if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: dict[str, Any], done: int) -> None:
        self._path = Path(path)
        kept = _lines_until(self._path, done) if done else []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(
                "".join(kept or [json.dumps({"run": run}) + "\n"]), encoding="utf-8"
            )
            temporary.replace(self._path)
            self._stream = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot write telemetry here: {error.strerror}", "choose another folder"
            ) from error

    def write(self, rows: Iterable[Row]) -> None:
        """Add one line for each row."""
        self._stream.writelines(json.dumps(row) + "\n" for row in rows)
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _lines_until(path: Path, done: int) -> list[str]:
    """Return the whole lines of a file of the same run, up to those of step `done`."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            step = json.loads(line).get("step", 0)
        except (ValueError, AttributeError):
            continue  # a line that was being written when the run ended
        if step <= done and line.endswith("\n"):
            kept.append(line)
    return kept


Sink = Callable[[dict[str, float]], None]
