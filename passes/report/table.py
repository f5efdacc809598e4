"""The report as a table: equal products of several blocks in one row."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from qgraph.passes.report.computed import fallback_lines
from qgraph.passes.report.elsewhere import elsewhere_text
from qgraph.passes.report.entries import Entry, Report, make_totals, weights_text
from qgraph.policy import ROLES, unused_rules, why_unused

COLUMNS = ("module", "product", "count", "sizes", "share", "operands")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Equal products of several blocks, as one line of the table."""

    module: str  # model.layers.{0-2}.mlp.up_proj
    count: int
    flops: int  # of all of them
    first: Entry


def make_rows(entries: Iterable[Entry]) -> list[Row]:
    """Group products that differ only in their block or in the last part of their module's path.

    Each product is in exactly one row. Rows stand in graph order of their modules, fprop first.
    """
    groups: dict[Entry, list[Entry]] = {}
    # The backward runs the other way round; names keep the forward's order.
    entries = sorted(entries, key=lambda entry: ROLES.index(entry.role))
    order = list(dict.fromkeys(_template(entry) for entry in entries))
    for entry in entries:
        alike = replace(entry, block=None, module=_template(entry).rpartition(".")[0])
        groups.setdefault(alike, []).append(entry)
    return [
        Row(
            module=_merged(group, order),
            count=len(group),
            flops=sum(e.flops for e in group),
            first=group[0],
        )
        for group in groups.values()
    ]


def report_text(report: Report, width: int = 100) -> str:
    """Return the coverage table and its totals as text of at most `width` columns.

    Under each module stand its products: role and op, how many, sizes (b x m x n x k, k summed; a
    batch of 1 left out), share of all product FLOPs, and what is done to the operands.
    """
    lines = [*table_lines(report.entries, width), *total_lines(report, width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def total_lines(report: Report, width: int = 100) -> list[str]:
    """Return what stands below the table: totals, notes and warnings."""
    return [
        part
        for line in _total_lines(report, report.entries)
        for part in textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)
        or [""]
    ]


def table_cells(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return the table's rows, cells as in `COLUMNS`; shares are of the FLOPs of `entries`."""
    whole = sum(entry.flops for entry in entries) or 1
    return [
        (row.module or "(root)", *_cells(row, whole), operand_text(row.first))
        for row in make_rows(entries)
    ]


def table_lines(entries: Sequence[Entry], width: int = 100) -> list[str]:
    """Return the table without its totals, each module's products under its name."""
    table = table_cells(entries)
    if not table:
        return []
    taken = 2 + sum(max(len(row[i]) for row in table) + 2 for i in range(1, 5))
    room = max(20, width - taken)
    words = [textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""] for row in table]
    drawn = iter(
        tabulate(
            [(*row[1:-1], "\n".join(lines)) for row, lines in zip(table, words, strict=True)],
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", "left", "left", "right", "left"),
        ).splitlines()
    )
    laid = [[next(drawn) for _ in lines] for lines in words]
    found: list[str] = []
    for module in dict.fromkeys(row[0] for row in table):
        found += textwrap.wrap(module, width, subsequent_indent="    ", break_on_hyphens=False)
        for row, lines in zip(table, laid, strict=True):
            if row[0] == module:
                found += [f"  {line}".rstrip() for line in lines]
    return found


def _cells(row: Row, whole: int) -> tuple[str, str, str, str]:
    batch, *sizes = row.first.shape
    shape = (
        "x".join(str(size) for size in ([batch] if batch > 1 else []) + sizes)
        if any(sizes)
        else "-"
    )
    return (
        f"{row.first.role} {row.first.op}",
        f"x{row.count}",
        shape,
        f"{100 * row.flops / whole:.1f}%",
    )


def _total_lines(report: Report, entries: Sequence[Entry]) -> Iterable[str]:
    totals = make_totals(entries)
    if report.elsewhere:
        yield f"warning: {elsewhere_text(report.elsewhere)}"
    if report.unaudited:
        yield f"note: products outside of graphs were not looked for: {report.unaudited}"
    if not entries:
        yield f"policy {report.policy.name}: no product seen so far; products are known once a step has run"
        return
    yield ""
    yield (
        f"policy {report.policy.name}: {len(report.quantized)} of {len(entries)} products quantized; "
        "share of product FLOPs:"
    )
    for title, group in (("", "formats"), ("", "kept"), ("not quantized: ", "not_quantized")):
        for key, share in sorted(totals[group].items(), key=lambda item: -item[1]):
            yield f"{100 * share:6.1f}%  {title}{key}"
    yield from _saved_lines(report)
    notes = Counter(note for entry in entries for note in entry.notes)
    for note, count in notes.items():
        yield f"note: {count} products: {note}"
    if report.lookups:
        yield f"note: rows of a table picked by number, no product: {', '.join(sorted(report.lookups))}"
    for use in report.policy.functions:
        if count := report.replaced[use.text]:
            yield f"{use.text}: {count} sites"
        else:
            yield (
                f"warning: functions: {use.text}: no {use.function} of the captured graphs is one it names "
                "(fused attention computes its own)"
            )
    lowered = Counter(entry.lowering for entry in entries if entry.lowering)
    for lowering, count in lowered.most_common():
        yield f"{count} products: {lowering}"
    yield from fallback_lines(o.kernel for entry in entries for o in entry.operands)
    for rule in unused_rules(report.policy, entries):
        yield f"warning: {rule.text}: {why_unused(rule, entries)}"
    if entries and report.not_captured:
        yield f"warning: {weights_text(report.not_captured)}"
    if entries and report.policy.quantizes and not report.quantized:
        yield "warning: nothing is quantized"
    if report.checked:
        yield (
            f"QGRAPH_VERIFY: {report.checked} quantized operands held against their definition as they "
            "first run; native products are not among them"
        )
    if report.not_observed:
        yield (
            f"telemetry looks at {report.observed} quantized operands; not at {report.not_observed} of "
            "native products, which are codes only"
        )
    if report.lowering:
        yield f"quantization runs on: {report.lowering}"


def _saved_lines(report: Report) -> Iterable[str]:
    """Say what is saved for the backward, and in what; nothing without a stash."""
    plain, stored = report.saved_bytes
    if not plain:
        return
    sizes = f"{plain / 1e6:.2f} MB, stored in {stored / 1e6:.2f} MB ({stored / plain:.3f})"
    yield f"saved for the backward: {sizes}:"
    groups: dict[str, list[int]] = {}
    for tensor in (t for group in report.saved.values() for t in group):
        what = f"high: {tensor.reason}" if tensor.reason else tensor.format
        what += ", exactly: quantized already" if tensor.exact else ""
        entry = groups.setdefault(what, [0, 0, 0])
        entry[:] = [entry[0] + 1, entry[1] + tensor.bytes, entry[2] + tensor.stored]
    for what, (count, size, kept) in sorted(groups.items(), key=lambda item: -item[1][2]):
        yield f"{100 * kept / stored:6.1f}%  {count} tensors, {size / 1e6:.2f} MB in {kept / 1e6:.2f}: {what}"


def operand_text(entry: Entry) -> str:
    """Return what is done to a product's operands, as the table says it."""
    if entry.status != "quantized":
        # A rule is spelt out in the totals; here its number is enough.
        return "high: " + re.sub(r"^kept: (rule [0-9]+) .*", r"\1", entry.reason)
    words = []
    for operand in entry.operands:
        extra = [operand.transform] if operand.transform else []
        extra += [operand.rounding] if operand.rounding != "nearest" else []
        extra += [f"gradient {operand.gradient}"] if operand.gradient else []
        words.append(" ".join([operand.kind, _compact(operand.format), *extra]))
    return ", ".join(words)


def _compact(text: str) -> str:
    """Return a format's text without its scales: e2m1/1x16/e4m3/fp32 -> e2m1/1x16."""
    return "/".join(text.split("/")[:2])


def _template(entry: Entry) -> str:
    """Return the module's path with its block's number left open."""
    path = entry.module
    if entry.block is not None:
        path = re.sub(rf"\.{entry.block}(?=\.|$)", ".{}", f".{path}", count=1)[1:]
    return path


def _merged(group: Sequence[Entry], order: Sequence[str]) -> str:
    """Return one name for the modules of `group`: model.layers.{0-2}.self_attn.{q,k,v}_proj."""
    blocks = sorted({entry.block for entry in group if entry.block is not None})
    paths = sorted({_template(entry) for entry in group}, key=order.index)
    parent, _, _ = paths[0].rpartition(".")
    leaves = [path.rpartition(".")[2] for path in paths]
    name = paths[0]
    if len(leaves) > 1:
        ends = {"_".join(["", *leaf.split("_")[1:]]) for leaf in leaves}
        tail = ends.pop() if len(ends) == 1 else ""
        heads = [leaf.removesuffix(tail) for leaf in leaves]
        name = f"{parent}." * bool(parent) + "{" + ",".join(heads) + "}" + tail
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and block == ranges[-1][1] + 1:
            ranges[-1][1] = block
        else:
            ranges.append([block, block])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return name.replace(".{}", f".{text}" if text.isdigit() else f".{{{text}}}") if blocks else name
