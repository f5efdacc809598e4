"""What the commands print, and where: tables and JSON to stdout, progress to stderr."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """Give a function `step(text)` that starts the next of `total` long steps, shown as a bar on stderr.

    Where stderr is no terminal, each step is one line.
    """
    if not sys.stderr.isatty():

        def say(text: str) -> None:
            sys.stderr.write(f"{text} ...\n")

        yield say
        return
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=1 if started else 0)
            started = True

        yield step


def width() -> int:
    """Return how many columns a table may take."""
    return shutil.get_terminal_size((100, 24)).columns


def wrap(text: str, indent: str) -> list[str]:
    """Return `text` in lines of the table's width, later ones indented; spaces between words stay."""
    rows: list[str] = []
    room = max(width(), 60)
    while len(text) > room:
        cut = text.rfind(" ", len(indent) + 1, room + 1)
        cut = cut if cut > len(indent) else room
        rows.append(text[:cut].rstrip())
        text = indent + text[cut:].lstrip()
    return [*rows, text.rstrip()]


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
