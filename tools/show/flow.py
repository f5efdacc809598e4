"""Which product's result reaches which other, told from the text of a graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qgraph.tools.show.graph_lines import Line


def product_flow(lines: Sequence[Line], products: Collection[str]) -> list[tuple[str, str]]:
    """Return pairs of products, by node: the second reads what the first computed, no other between.

    Where a sum carries the results of many products, as a residual stream does, only the last of them
    is named: those before it already reach the product through the last.
    """
    order: dict[str, int] = {}
    behind: list[int] = []  # of each product, those that reach it, as bits
    reach: dict[str, frozenset[int]] = {}
    names: list[str] = []
    pairs: list[tuple[str, str]] = []
    for line in lines:
        sources = {source for name in line.sources for source in reach.get(name, frozenset())}
        covered = 0
        for source in sources:
            covered |= behind[source]
        last = frozenset(source for source in sources if not covered >> source & 1)
        if line.name not in products:
            reach[line.name] = last
            continue
        number = order[line.name] = len(names)
        names.append(line.name)
        bits = 0
        for source in last:
            bits |= behind[source] | 1 << source
            pairs.append((names[source], line.name))
        behind.append(bits)
        reach[line.name] = frozenset({number})
    return sorted(pairs, key=lambda pair: (order[pair[1]], order[pair[0]]))
