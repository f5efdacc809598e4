"""What differs between two plans of one model: products, graphs and costs."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qgraph.formats import parse_format
from qgraph.tools.show.graph_lines import Line, read_lines, slice_before
from qgraph.tools.show.look import Look
from qgraph.tools.show.sites import site_names

if TYPE_CHECKING:
    from qgraph.passes import Entry

_BITS = {"fp32": 32, "bf16": 16, "fp16": 16}


@dataclass(kw_only=True)
class Change:
    """One product that two plans treat differently; `graph` holds the lines of a diff."""

    site: str
    entry: Entry
    first: str
    second: str
    share: float
    nodes: tuple[str, str]
    graph: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Plans:
    """Two plans held against each other."""

    changed: list[Change]
    same: int
    only_first: list[str]
    only_second: list[str]


def only_high(look: Look) -> Look:
    """Return the look before its rewrite: nothing quantized, and the graph as it was captured."""
    report = replace(
        look.report,
        products={
            key: replace(entry, status="kept", operands=(), reason="before the rewrite")
            if entry.status == "quantized"
            else entry
            for key, entry in look.report.products.items()
        },
    )
    return replace(look, report=report, after=look.before)


def compare_plans(first: Look, second: Look) -> Plans:
    """Hold two plans against each other, product by product."""
    names = site_names(first.entries), site_names(second.entries)
    changed, same = [], 0
    for name, entry in names[1].items():
        other = names[0].get(name)
        if other is None:
            continue
        words = describe(other), describe(entry)
        if words[0] == words[1]:
            same += 1
            continue
        changed.append(
            Change(
                site=name, entry=entry, first=words[0], second=words[1],
                share=entry.flops / (second.flops or 1), nodes=(other.node, entry.node),
            )
        )  # fmt: skip
    return Plans(
        changed=changed,
        same=same,
        only_first=[name for name in names[0] if name not in names[1]],
        only_second=[name for name in names[1] if name not in names[0]],
    )


def describe(entry: Entry) -> str:
    """Return what happens to a product in one line, nothing left out."""
    if entry.status != "quantized":
        return "high" + (f" ({entry.reason})" if entry.status == "unsupported" else "")
    words = []
    for operand in entry.operands:
        extra = [operand.transform, operand.rounding if operand.rounding != "nearest" else ""]
        extra += [f"gradient {operand.gradient}" if operand.gradient else ""]
        words.append(" ".join([operand.kind, operand.format, *filter(None, extra)]))
    return ", ".join(words)


def group_changes(changed: Sequence[Change]) -> Iterator[tuple[str, list[Change], float]]:
    """Yield changes that are alike together: a title, the changes, and their share of all FLOPs."""
    from qgraph.passes import make_rows

    marked = {}
    for change in changed:
        # Rows are of products that are alike: here, that change alike.
        entry = replace(
            change.entry, operands=(), status="kept", rule="", notes=(), lowering="",
            reason=f"{change.first} > {change.second}",
        )  # fmt: skip
        marked[entry, change.site] = change
    for row in make_rows([entry for entry, _ in marked]):
        alike = [
            change
            for (entry, _), change in marked.items()
            if (entry.reason, entry.role, entry.op, entry.shape)
            == (row.first.reason, row.first.role, row.first.op, row.first.shape)
            and _same_row(entry, row.first)
        ]
        title = f"{row.module or '(root)'} {row.first.role} {row.first.op} x{row.count}"
        yield title, alike, sum(change.share for change in alike)


def _same_row(one: Entry, other: Entry) -> bool:
    def parent(entry: Entry) -> str:
        path = entry.module
        if entry.block is not None:
            path = re.sub(rf"\.{entry.block}(?=\.|$)", ".{}", f".{path}", count=1)
        return path.rpartition(".")[0]

    return parent(one) == parent(other)


def compare_graphs(changed: Sequence[Change], first: Look, second: Look) -> None:
    """Fill in the graph of each change: the product and what the rewrites added in front of it."""
    if not (first.after and second.after):
        return
    graphs = [{line.name: line for line in read_lines(look.after)} for look in (first, second)]
    # What both had before a rewrite needs no showing.
    stops = [{line.name for line in read_lines(look.before)} for look in (first, second)]
    for change in changed:
        texts: list[list[str]] = []
        for known, stop, node in zip(graphs, stops, change.nodes, strict=True):
            texts.append(shown(slice_before(known, node, stop)) if node in known else [])
        change.graph = [
            line
            for line in difflib.unified_diff(texts[0], texts[1], lineterm="", n=3)
            if not line.startswith(("---", "+++", "@@"))
        ]


def shown(lines: Sequence[Line]) -> list[str]:
    """Return a product's lines with the nodes in front of it numbered, and draws without their number."""
    numbers = {line.name: f"%{i}" for i, line in enumerate(lines[:-1], 1)}
    rows = []
    for line in lines:
        arguments = re.sub(r"\bseed, \d+", "seed", line.arguments)
        arguments = re.sub(r"\b\w+\b", lambda m: numbers.get(m[0], m[0]), arguments)
        rows.append(f"{numbers.get(line.name, line.name)}: {line.type} = {line.op}({arguments})")
    return rows


def count_ops(looks: Sequence[Look]) -> dict[str, list[int]]:
    """Return how often each op stands in both graphs, where that differs."""
    counts = [Counter(line.op for line in read_lines(look.after)) for look in looks]
    names = sorted(set(counts[0]) | set(counts[1]))
    return {name: [c[name] for c in counts] for name in names if counts[0][name] != counts[1][name]}


def compare_costs(first: Look, second: Look) -> dict[str, Any]:
    """Return what two plans cost: shares of FLOPs by format, and bits of operands."""
    from qgraph.passes import make_totals

    totals = [make_totals(look.entries)["formats"] for look in (first, second)]
    formats = sorted({*totals[0], *totals[1]})
    pair = ("a", "b")
    return {
        "formats": {name: [t.get(name, 0.0) for t in totals] for name in formats},
        "quantized": dict(zip(pair, (look.report.share for look in (first, second)), strict=True)),
        "operand_bits": dict(
            zip(pair, (operand_bits(look.entries) for look in (first, second)), strict=True)
        ),
    }


def operand_bits(entries: Sequence[Entry]) -> float:
    """Return the mean bits of an operand's element over all products that show their operands."""
    bits = elements = 0.0
    for entry in entries:
        batch, m, n, k = entry.shape
        for index, size in enumerate((batch * m * k, batch * k * n)):
            text = entry.operands[index].format if entry.status == "quantized" else "high"
            each = (
                _BITS.get(entry.dtype, 32)
                if text == "high"
                else parse_format(text).bits_per_element
            )
            bits, elements = bits + size * each, elements + size
    return bits / elements if elements else 0.0
