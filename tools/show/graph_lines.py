"""The text of a graph, line by line: what `qgraph convert` writes, read back for looking at."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from qgraph.errors import FormatError
from qgraph.formats import parse_format

_LINE = re.compile(r"(?P<name>\w+): (?P<type>.+?) = (?P<call>.*?)(?:  # (?P<place>[^()]*))?")
_BYTES = {
    "f32": 4,
    "f64": 8,
    "float64": 8,
    "bf16": 2,
    "f16": 2,
    "i64": 8,
    "i32": 4,
    "u8": 1,
    "bool": 1,
}
_QUANTIZERS = {"qgraph.fake_quant": 1, "qgraph.rotate_quant": 3, "qgraph.quantize": 1}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One node of a printed graph."""

    number: int  # in the order of the graph
    name: str
    type: str  # f32[2, 16]
    op: str  # aten.mm; "input" of an input
    arguments: str  # as printed
    half: str  # forward, backward, or nothing
    module: str
    text: str  # the whole line

    @cached_property
    def sizes(self) -> tuple[int, ...] | None:
        """The sizes of the node's tensor; None of anything else, or where one is dynamic."""
        found = re.fullmatch(r"\w+\[([\d, ]*)\]", self.type)
        return tuple(int(size) for size in found[1].split(",") if size.strip()) if found else None

    @property
    def bytes(self) -> int | None:
        """What the node's tensor takes as it is computed, in bytes, if that is known."""
        width = _BYTES.get(self.type.partition("[")[0])
        return None if width is None or self.sizes is None else width * prod(self.sizes)

    @property
    def packed(self) -> int | None:
        """What a quantized tensor takes as codes and scales, in bytes; None of anything else."""
        position = _QUANTIZERS.get(self.op)
        if position is None or self.sizes is None:
            return None
        text = split_arguments(self.arguments)[position].strip("'")
        try:
            return round(parse_format(text).bits_per_element * prod(self.sizes) / 8)
        except FormatError:
            return None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The names in the arguments; some are no nodes."""
        return tuple(re.findall(r"\b[a-z_]\w*\b", re.sub(r"'[^']*'|\w+=", " ", self.arguments)))


def read_lines(text: str) -> list[Line]:
    """Return the nodes of a printed graph; the returned values are no node."""
    lines: list[Line] = []
    for row in text.splitlines():
        found = _LINE.fullmatch(row)
        if row.startswith("return ") or not found:
            continue
        op, bracket, rest = found["call"].partition("(")
        half, _, module = (found["place"] or "").partition("  ")
        if half not in ("forward", "backward"):
            half, module = "", half
        lines.append(
            Line(
                number=len(lines),
                name=found["name"],
                type=found["type"],
                op=op,
                arguments=rest[:-1] if bracket else "",
                half=half,
                module=module,
                text=row,
            )
        )
    return lines


def split_arguments(text: str) -> list[str]:
    """Return the arguments of a printed call, each as text."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def within(lines: Iterable[Line], module: str) -> list[Line]:
    """Return the nodes that belong to `module` or to a part of it."""
    return [n for n in lines if n.module == module or n.module.startswith(f"{module}.")]


def slice_before(known: Mapping[str, Line], product: str, stop: Collection[str]) -> list[Line]:
    """Return `product` and the nodes it reads, in order, back to nodes named in `stop` and inputs.

    `known` holds the graph's nodes by name. What `stop` holds is what the graph had before the
    rewrite, so that the rest is what it added; the product itself is never left out.
    """
    wanted, frontier = {product}, [product]
    while frontier:
        for source in known[frontier.pop()].sources:
            if source in known and source not in wanted and source not in stop:
                wanted.add(source)
                frontier.append(source)
    return sorted((known[name] for name in wanted), key=lambda line: line.number)
