"""A graph as text a person can read: one line a node, with shapes and the module it serves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Graph, Node

from qgraph.compat import aten, meta
from qgraph.passes.graph.places import frame_module, module_path

_SHORT = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
}


def graph_text(graph: Graph, modules: Mapping[str, str] | None = None) -> str:
    """Return `graph` as text, stable for one graph and one torch version; `modules` as in GraphFacts.

    A line reads: name: type[sizes] = op(arguments)  # half of the graph, module
    """
    known = modules or {}
    frame = frame_module(graph, known)
    return "\n".join(_line(node, known, frame) for node in graph.nodes) + "\n"


def _line(node: Node, modules: Mapping[str, str], frame: str) -> str:
    if node.op == "placeholder":
        return f"{node.name}: {_type(node)} = input"
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    arguments = [_argument(arg) for arg in node.args]
    arguments += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    target = (
        str(node.target)
        if not callable(node.target) or aten.is_op(node.target)
        else node.target.__name__
    )
    place = (meta.half(node), module_path(node, modules, frame))
    comment = "  ".join(part for part in place if part)
    line = f"{node.name}: {_type(node)} = {target.removesuffix('.default')}({', '.join(arguments)})"
    return f"{line}  # {comment}" if comment else line


def _argument(value: object) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(item) for item in value)}]"
    return repr(value) if isinstance(value, str) else str(value)


def _type(node: Node) -> str:
    value = meta.value(node)
    if isinstance(value, (list, tuple)):
        return f"({len(value)} values)"
    if not isinstance(value, Tensor):
        return type(value).__name__
    name = str(value.dtype).removeprefix("torch.")
    return f"{_SHORT.get(name, name)}[{', '.join(str(size) for size in value.shape)}]"
