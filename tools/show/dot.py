"""A plan as a Graphviz graph: modules as clusters, products as nodes, coloured by format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def draw_dot(data: dict[str, Any]) -> str:
    """Return the report's data as a DOT file; render it with `dot -Tsvg FILE`."""
    tree: dict[str, Any] = {}
    for number, site in enumerate(data["sites"]):
        place = tree
        for part in site["module"].split("."):
            place = place.setdefault(part, {})
        place.setdefault("", []).append(number)
    lines = [
        "digraph qgraph {",
        f"  label={_text(data['about']['source'] + ', policy ' + data['about']['policy'])};",
        '  graph [rankdir=TB, fontname="Helvetica", style=rounded, color="#888888"];',
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontcolor=white];',
        *_cluster(tree, "", data, "  "),
    ]
    lines += [f"  s{a} -> s{b};" for a, b in data["edges"]]
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(tree: dict[str, Any], path: str, data: dict[str, Any], pad: str) -> Iterator[str]:
    for number in tree.get("", []):
        site = data["sites"][number]
        label = f"{site['role']} {site['op']}\n{site['plan'].replace(', ', chr(10))}"
        colour = data["colours"][site["format"]]
        yield f"{pad}s{number} [label={_text(label)}, fillcolor={_text(colour)}];"
    for name, part in tree.items():
        if name:
            inner = f"{path}.{name}" if path else name
            yield f"{pad}subgraph {_text('cluster_' + inner)} {{"
            yield f"{pad}  label={_text(name)};"
            yield from _cluster(part, inner, data, pad + "  ")
            yield f"{pad}}}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
