"""Telemetry in the terminal: one line for each operand of each product, kept up to date."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from qgraph.training.telemetry import Row


class LiveTable:
    """A table that stays at the bottom of a terminal; elsewhere it is printed once, at the end."""

    def __init__(self, width: int | None = None) -> None:
        self._console = Console(file=sys.stderr, width=width)
        self._live: Live | None = None
        self._last: Table | None = None

    def show(self, step: int, total: int, rows: Iterable[Row]) -> None:
        """Show the rows of a step."""
        self._last = summary(step, total, rows)
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(self._last, refresh=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.stop()
        elif self._last is not None:
            self._console.print(self._last)
        self._live = self._last = None


def summary(step: int, total: int, rows: Iterable[Row]) -> Table:
    """Return a table of at most 80 columns: per operand, over its sites, the median and the worst."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["product"], row["operand"]), []).append(row)
    title = f"telemetry, step {step} of {total}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("product", "operand", "sites", "SQNR dB", "worst", "where", "clip", "to zero"):
        words = name in ("product", "operand", "where")
        ratio: Any = (
            {"overflow": "ellipsis", "no_wrap": True} if name == "where" else {"no_wrap": True}
        )
        table.add_column(name, justify="left" if words else "right", **ratio)
    for (product, operand), group in sorted(groups.items()):
        known = [row for row in group if row["sqnr_db"] is not None]
        worst = min(known, key=lambda row: row["sqnr_db"], default=None)
        table.add_row(
            product,
            operand,
            str(len(group)),
            f"{statistics.median(row['sqnr_db'] for row in known):.1f}" if known else "exact",
            f"{worst['sqnr_db']:.1f}" if worst else "-",
            _short(worst["module"]) if worst else "",
            _percent(max(row["clipped"] for row in group)),
            _percent(max(row["flushed"] for row in group)),
        )
    return table


def _short(module: str) -> str:
    """Return the last parts of a path, from the block's number on: 3.mlp.down_proj."""
    parts = module.split(".")
    start = next((i for i, part in enumerate(parts) if part.isdigit()), max(0, len(parts) - 2))
    return ".".join(parts[start:])


def _percent(share: float) -> str:
    return "0" if share == 0 else "<0.01%" if share < 1e-4 else f"{100 * share:.2f}%"
