"""A plan for Google's Model Explorer: its JSON graph format, one node a product."""

from __future__ import annotations

from typing import Any


def explorer_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return the report's data as a graph collection that Model Explorer opens.

    Source: the schema of Model Explorer's JSON graph, `graphs: [{id, nodes}]`: a node has an `id`, a
    `label`, a `namespace` whose slashes are layers, `attrs` and `incomingEdges`.
    """
    nodes = []
    incoming: dict[int, list[int]] = {}
    for source, target in data["edges"]:
        incoming.setdefault(target, []).append(source)
    for number, site in enumerate(data["sites"]):
        facts = {
            "site": site["name"],
            "plan": site["plan"],
            "product": site["product"],
            "sizes": " x ".join(map(str, site["shape"])),
            "FLOPs": str(site["flops"]),
            "dtype": site["dtype"],
            "status": site["status"],
            "why": site["reason"],
        }
        for operand, values in zip(site["operands"], site["values"], strict=False):
            if values is not None:
                sqnr = values["sqnr"]
                facts[f"{operand['kind']} SQNR"] = "exact" if sqnr is None else f"{sqnr:.1f} dB"
        nodes.append(
            {
                "id": str(number),
                "label": f"{site['role']} {site['format']}",
                "namespace": site["module"].replace(".", "/"),
                "attrs": [{"key": key, "value": value} for key, value in facts.items() if value],
                "incomingEdges": [
                    {"sourceNodeId": str(source), "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
                    for i, source in enumerate(incoming.get(number, []))
                ],
                "style": {"backgroundColor": data["colours"][site["format"]]},
            }
        )  # fmt: skip
    label = f"{data['about']['source']}, policy {data['about']['policy']}"
    return {"label": label, "graphs": [{"id": "products", "nodes": nodes}]}
