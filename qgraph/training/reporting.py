"""Sending telemetry to what a Trainer's `report_to` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    get_reporting_integration_callbacks,
)


class Reporters:
    """Integrations of their own for telemetry: a Trainer's callbacks cannot reach each other's.

    TensorBoard's writes into the folder that the Trainer's own one just made; the others log into
    the run that is open.
    """

    def __init__(self, args: Any, state: Any, control: Any) -> None:
        self._now = (args, state, control)
        self._callbacks = [kind() for kind in get_reporting_integration_callbacks(args.report_to)]
        for callback in self._callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = callback.logging_dir or _newest(
                    Path(args.output_dir) / "runs"
                )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Log numbers of `step`."""
        args, state, control = self._now
        for callback in self._callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is None:
                callback.on_train_begin(args, state, control)
            callback.on_log(args, state, control, logs=dict(scalars))

    def close(self) -> None:
        """Flush and close what was opened."""
        args, state, control = self._now
        for callback in self._callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.on_train_end(args, state, control)


def _newest(folder: Path) -> str | None:
    """Return the folder in `folder` that was made last."""
    found = [path for path in folder.glob("*") if path.is_dir()] if folder.is_dir() else []
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None
