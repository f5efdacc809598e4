"""A product as boxes: what each operand goes through, and the product; as text and as SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

# Of the boxes in an SVG, by kind: fill and line.
COLOURS = {
    "operand": ("#eef2f7", "#7b8ba5"),
    "rotate": ("#fdf0d5", "#c98a1b"),
    "quantize": ("#dcefe3", "#2f855a"),
    "product": ("#e3e8fb", "#4557c4"),
}
_LETTER, _LINE, _PAD = 7.3, 17, 10  # of an SVG: width of a letter, height of a line, inside a box


@dataclass(frozen=True, kw_only=True)
class Box:
    """One step: a heading, what there is to say, and its kind, which is a key of COLOURS."""

    title: str
    lines: tuple[str, ...]
    kind: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Two columns of boxes that lead into one product."""

    columns: tuple[tuple[Box, ...], tuple[Box, ...]]
    product: Box


def draw_text(picture: Picture, width: int = 80) -> list[str]:
    """Return the picture as lines of at most `width` columns."""
    side = max(24, min(38, (width - 3) // 2))
    stacks = [
        [line for i, box in enumerate(column) for line in _box(box, side, above=i > 0, below=True)]
        for column in picture.columns
    ]
    depth = max(map(len, stacks))
    middle = side // 2
    blank = " " * middle + "│" + " " * (side - middle - 1)
    rows = [
        f"{left}   {right}".rstrip()
        for left, right in zip_longest(*(s + [blank] * (depth - len(s)) for s in stacks))
    ]
    whole = 2 * side + 3
    centre, right = whole // 2, side + 3 + middle
    join = "".join(
        "└" if i == middle else "┘" if i == right else "┬" if i == centre else
        "─" if middle < i < right else " " for i in range(whole)
    )  # fmt: skip
    body = _box(picture.product, side + 8, above=True, below=False)
    # The product's box stands so that its upper tee is at the centre.
    return [*rows, join.rstrip(), *(" " * (centre - (side + 8) // 2) + line for line in body)]


def _box(box: Box, width: int, *, above: bool, below: bool) -> list[str]:
    inner, middle = width - 2, width // 2 - 1
    edges = [
        "─" * middle + (tee if open_ else "─") + "─" * (inner - middle - 1)
        for open_, tee in ((above, "┴"), (below, "┬"))
    ]
    rows = [
        row
        for line in (box.title, *box.lines)
        for row in textwrap.wrap(line, inner - 2, break_on_hyphens=False) or [""]
    ]
    body = [f"│ {row:<{inner - 2}} │" for row in rows]
    return [f"┌{edges[0]}┐", *body, f"└{edges[1]}┘"]


def draw_svg(picture: Picture, title: str) -> str:
    """Return the picture as an SVG file."""
    parts: list[str] = []
    side, gap = 330.0, 30.0
    bottoms: list[float] = []
    for index, column in enumerate(picture.columns):
        x, y = 20 + index * (side + gap), 52.0
        for number, box in enumerate(column):
            height, drawn = _svg_box(box, x, y, side)
            if number:
                parts.append(_arrow(x + side / 2, y - 22, x + side / 2, y))
            parts.append(drawn)
            y += height + 22
        bottoms.append(y - 22)
    wide = 2 * side + gap + 40
    top = max(bottoms) + 44
    height, drawn = _svg_box(picture.product, (wide - side) / 2, top, side)
    for index, bottom in enumerate(bottoms):
        x = 20 + index * (side + gap) + side / 2
        parts.append(_arrow(x, bottom, wide / 2 + (-60 if index == 0 else 60), top))
    parts.append(drawn)
    tall = top + height + 20
    style = "font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:12px"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {tall:g}" '
        f'width="{wide:g}" height="{tall:g}" style="{style}">\n'
        f"<title>{escape(title)}</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>\n'
        f'<rect width="{wide:g}" height="{tall:g}" fill="#fff"/>\n'
        f'<text x="20" y="32" font-size="14" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _svg_box(box: Box, x: float, y: float, width: float) -> tuple[float, str]:
    rows = [
        row
        for line in box.lines
        for row in textwrap.wrap(line, int((width - 2 * _PAD) / _LETTER)) or [""]
    ]
    fill, line = COLOURS[box.kind]
    height = _LINE * (len(rows) + 1) + 2 * _PAD - 4
    texts = [
        f'<text x="{x + _PAD:g}" y="{y + _PAD + 10:g}" font-weight="bold">{escape(box.title)}</text>'
    ]
    texts += [
        f'<text x="{x + _PAD:g}" y="{y + _PAD + 10 + _LINE * (i + 1):g}">{escape(row)}</text>'
        for i, row in enumerate(rows)
    ]
    shape = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
        f'fill="{fill}" stroke="{line}"/>'
    )
    return height, "\n".join([shape, *texts])


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" stroke="#555" fill="none" marker-end="url(#tip)"/>'


def boxes_text(boxes: Sequence[Box]) -> list[str]:
    """Return the boxes as one line each."""
    return [f"{box.title}: {'; '.join(box.lines)}" for box in boxes]
