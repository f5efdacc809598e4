"""Which products read the same quantized tensor, told from the text of a rewritten graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qgraph.tools.show.graph_lines import Line

if TYPE_CHECKING:
    from qgraph.passes import Entry

QUANTIZERS = ("qgraph.fake_quant", "qgraph.rotate_quant", "qgraph.quantize")
_VIEWS = (
    "aten.permute", "aten.t", "aten.view", "aten.reshape", "aten.clone", "aten.expand",
    "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze",
)  # fmt: skip


def quantizers_of(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Return for each node the quantizing nodes it reads through views, in argument order."""
    known = {line.name: line for line in lines}

    def below(name: str) -> str | None:
        while name in known:
            line = known[name]
            if line.op in QUANTIZERS:
                return name
            sources = [s for s in line.sources if s in known]
            if not line.op.startswith(_VIEWS) or not sources:
                return None
            name = sources[0]
        return None

    return {
        line.name: [found for source in line.sources if (found := below(source))] for line in lines
    }


def shared_codes(lines: Sequence[Line], sites: Mapping[str, Entry]) -> dict[str, list[list[str]]]:
    """Return for each quantized product, by its operands, the other products that read the same codes."""
    reads = quantizers_of(lines)
    users: dict[str, list[str]] = {}
    for name, entry in sites.items():
        for quantizer in reads.get(entry.node, []):
            users.setdefault(quantizer, []).append(name)
    found: dict[str, list[list[str]]] = {}
    for name, entry in sites.items():
        quantizers = iter(reads.get(entry.node, []))
        if entry.status == "quantized":
            found[name] = [
                [other for other in users.get(next(quantizers, ""), []) if other != name]
                if operand.format != "high"
                else []
                for operand in entry.operands
            ]
    return found
