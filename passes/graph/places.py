"""Where a node belongs: its module, and which block of which stack that is."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from qgraph.compat import meta
from qgraph.compat import modules as of_torch


def module_path(node: Node, modules: Mapping[str, str], frame: str = "") -> str:
    """Return the dotted path of the module a node belongs to, "" for the root or an unknown one.

    Found by the module's id where `modules` has it. A path Dynamo writes is relative to the frame
    it compiled (`L['args'][0].model`, or an inner module's `L['self'].layers`): the last resort.
    What that module computes itself has no path, and belongs to `frame`.
    """
    stack = meta.modules(node)
    if not stack:
        return frame
    key, value = list(stack.items())[-1]
    name = modules.get(_id(key))
    return name if name is not None else of_torch.relative_path(str(value[0]))


def frame_module(graph: Graph, modules: Mapping[str, str]) -> str:
    """Return the path of the module whose forward `graph` is, "" for the root or an unknown one.

    After a graph break it may be any: a path to it and a path from it, of one node, tell which.
    """
    for node in graph.nodes:
        for key, value in meta.modules(node).items():
            name, below = modules.get(_id(key)), of_torch.relative_path(str(value[0]))
            if name and below and f".{name}".endswith(f".{below}"):
                return name.removesuffix(below).removesuffix(".")
            break  # the outermost alone: the rest follow from it
    return ""


def lookups(graph: Graph, modules: Mapping[str, str]) -> list[str]:
    """Return the paths of the modules that pick rows of a table by number: no product, so kept."""
    frame = frame_module(graph, modules)
    found = graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    return sorted({module_path(node, modules, frame) for node in found})


def _id(key: object) -> str:
    return str(key).split("@")[0]


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """Return for each prefix followed by a number in `names`, how many numbers there are."""
    stacks: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                prefix = ".".join(parts[:i])
                stacks[prefix] = max(stacks.get(prefix, 0), int(part) + 1)
                break
    return stacks


def block_of(module: str, blocks: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Return which block of its stack a module is in, and how many there are; None outside stacks."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        prefix = ".".join(parts[:i])
        if part.isdigit() and prefix in blocks:
            return int(part), blocks[prefix]
        if match := _NUMBERED.fullmatch(part):
            for first in (0, 1):
                if (key := numbered_stack(prefix, match[1], first)) in blocks:
                    return int(match[2]) - first, blocks[key]
    return None, None


_NUMBERED = re.compile(r"(.*?[^0-9])([0-9]+)")


def numbered_stack(path: str, stem: str, first: int) -> str:
    """Return the key of a stack whose blocks are attributes of the module at `path`.

    They are called `stem` and a number, from `first` on.
    """
    return f"{path}.{stem}#{first}".removeprefix(".")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module as the policy sees it before there is a graph."""

    module: str
    block: int | None
    block_count: int | None
    op: str = "linear"
    role: str = "fprop"
    operand_kinds: tuple[str, ...] = ("input", "weight")
    part: str = ""

    @classmethod
    def at(cls, name: str, blocks: Mapping[str, int], heads: Container[str] = ()) -> Layer:
        """Return the module called `name`."""
        block, count = block_of(name, blocks)
        part = "head" if name in heads else ""
        return cls(module=name, block=block, block_count=count, part=part)
