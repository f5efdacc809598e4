"""Tables: as text for the terminal, and as GitHub, LaTeX and spreadsheets read them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from tabulate import tabulate

from qgraph.errors import QGraphError
from qgraph.tools.show.screen import width

if TYPE_CHECKING:
    from qgraph.passes import Entry

PLAIN = "plain"
STYLES = (PLAIN, "github", "latex", "tsv")
LEAST = 20  # columns for words that are wrapped
Table = Annotated[
    str,
    typer.Option(
        metavar="STYLE",
        help="Print the tables alone, as github, latex or tsv; what stands below them goes to stderr.",
    ),
]


def check_style(style: str, *, json: bool = False, graph: bool = False) -> None:
    """Check the word after --table.

    Raises: QGraphError if there is no such style, or nothing that it could be the style of.
    """
    if style not in STYLES:
        raise QGraphError(f"--table: unknown style '{style}'", f"use one of: {', '.join(STYLES)}")
    if style != PLAIN and (json or graph):
        other = "--json" if json else "--graph"
        raise QGraphError(f"{other} prints no table", f"leave --table {style} or {other} out")


def draw(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    style: str = PLAIN,
    *,
    right: Collection[str] = (),
    headed: bool = True,
) -> list[str]:
    """Return the lines of a table.

    `right` are the columns, by name, that stand at their right edge. A plain table is as wide as the
    terminal at most: the words of its last column are wrapped; without `headed` its columns have no names.
    """
    cells = [[_cell(cell, style) for cell in row] for row in rows]
    if style == PLAIN:  # tabulate would set columns wider for their names' sake
        cells = [[*names], *cells] if headed else cells
    aligned = bool(cells) and style != "tsv"  # a spreadsheet reads what fills columns up
    text = tabulate(
        cells,
        () if style == PLAIN else names,
        tablefmt=style,
        disable_numparse=True,
        stralign="left" if aligned else None,
        colalign=["right" if name in right else "left" for name in names] if aligned else None,
        maxcolwidths=[None] * (len(names) - 1) + [_room(cells)] if style == PLAIN else None,
        break_on_hyphens=False,
    )
    lines = [line.rstrip() for line in text.splitlines()]
    if style == "tsv":  # tabulate drops empty cells at the end
        lines = [line + "\t" * (len(names) - 1 - line.count("\t")) for line in lines]
    return lines


def _cell(text: str, style: str) -> str:
    words = text if style == PLAIN else " ".join(text.split())
    return words.replace("|", r"\|") if style == "github" else words


def _room(cells: Sequence[Sequence[str]]) -> int:
    """Return the columns of the terminal that are left to the last one of the table."""
    taken = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)][:-1]
    return max(LEAST, width() - sum(taken))


def coverage_table(entries: Sequence[Entry], style: str = PLAIN) -> list[str]:
    """Return the table of products: plain as reports print it, else with a module in each row."""
    from qgraph.passes import COLUMNS, table_cells, table_lines

    if style == PLAIN:
        return table_lines(entries, width())
    rows = table_cells(entries)
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))  # a module's products stand together
    return draw(COLUMNS, rows, style, right=("count", "share"))


def below(style: str, lines: Iterable[str]) -> None:
    """Print what stands below a table: beside a plain one, else to stderr."""
    stream = sys.stdout if style == PLAIN else sys.stderr
    for line in lines:
        stream.write(line + "\n")


def print_table(lines: Iterable[str]) -> None:
    """Print a table's lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
