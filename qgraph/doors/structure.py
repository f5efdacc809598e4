"""What a model's structure says of its parts, whatever they are called: stacks of blocks, and heads."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from qgraph.compat import modules
from qgraph.passes import numbered_stack

_NUMBERED = re.compile(r"(.*?)(\d+)")


def stacks_in(model: nn.Module) -> dict[str, int]:
    """Return each stack of blocks by its path, and how many there are: see `block_of`."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        children = dict(module.named_children())
        # A Sequential is a stack if its children are alike and have parts of their own: a head
        # such as (Linear, Linear) or (Flatten, Linear) is not.
        kinds = {type(c) if [*c.children()] else None for c in children.values()}
        listed = isinstance(module, nn.ModuleList) or (
            isinstance(module, nn.ModuleDict) and all(map(str.isdigit, children))
        )
        alike = len(kinds) == 1 and None not in kinds
        if listed or (isinstance(module, nn.Sequential) and alike):
            found[name] = len(children)
        else:
            found.update(_numbered(name, children))
    return found


def _numbered(path: str, children: dict[str, nn.Module]) -> Iterator[tuple[str, int]]:
    """Yield stacks whose blocks are attributes of one class with parts of their own: block1, block2."""
    numbers: dict[tuple[str, type], list[int]] = defaultdict(list)
    for name, child in children.items():
        match = _NUMBERED.fullmatch(name)
        plain = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if match and match[1] and [*child.children()] and not plain:
            numbers[match[1], type(child)].append(int(match[2]))
    for (stem, _), found in numbers.items():
        first, count = min(found), len(found)
        if count > 1 and first <= 1 and sorted(found) == [*range(first, first + count)]:
            yield numbered_stack(path, stem, first), count


def heads_in(model: nn.Module) -> set[str]:
    """Return the paths of the modules that make the scores of a vocabulary.

    What `get_output_embeddings` gives, what shares its weight with an embedding, and the parts of an
    adaptive softmax.
    """
    tables = table_ids(model)
    heads: set[int] = set()
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        with suppress(NotImplementedError, AttributeError):
            heads.add(id(ask() if callable(ask) else None))
        stored = modules.parameters_of(module).get("weight")  # not computed: asking would run code
        if not isinstance(module, nn.Embedding) and id(stored) in tables:
            heads.add(id(module))
        if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
            heads |= {id(part) for part in module.modules()}
    return {name for name, module in model.named_modules() if id(module) in heads}


def table_ids(model: nn.Module) -> set[int]:
    """Return the ids of the weights of embeddings: what multiplies by one is a head."""
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def vocabulary_of(model: nn.Module) -> int:
    """Return how many rows the largest embedding has, 0 without one.

    A linear layer outside of blocks with as many outputs, and fewer inputs, is a head.
    """
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return max(tables, default=0)
