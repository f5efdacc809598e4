"""What a model's training step does, from its config alone: no weights, no memory, nothing run.

Of equal blocks few are captured, and counted as often as the model has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from qgraph.compat import meta
from qgraph.doors import Capture, cut
from qgraph.models import Shapes, load_config, model_class
from qgraph.passes import (
    VIEWS,
    Layer,
    Site,
    elementwise_traffic,
    module_path,
    quantizes_attention,
)
from qgraph.policy import Policy, load_policy_text
from qgraph.predict.capture import capture_step

_APART = (
    "{qgraph: 1, name: apart, rules: [{match: {op: [qk, pv]}, fprop: {lhs: nvfp4, rhs: nvfp4}}]}"
)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor that the forward keeps for the backward.

    `readers` are the operands it is, as (number of a site, number of an operand); None if anything but
    products reads it.
    """

    elements: int
    bytes: int
    readers: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, kw_only=True)
class StepOutline:
    """One training step: its products, what it keeps, and how many bytes the rest moves.

    `traffic` is bytes of elementwise work by block, None for what is outside; `parameters` gives
    elements by name. `captured` blocks of `blocks` were looked at.
    """

    sites: tuple[Site, ...]
    saved: tuple[Saved, ...]
    traffic: dict[int | None, int]
    parameters: dict[str, int]
    blocks: int
    captured: int


def outline_step(
    name: str, policy: Policy, *, batch: int, length: int, whole: bool = False
) -> StepOutline:
    """Return the training step of the model called `name`, captured under `policy` from its config.

    Fused attention is taken apart in every block if `policy` quantizes its products in any. With
    `whole`, every block is captured.

    Raises: ModelError as `load_config` and `capture`.
    """
    config = load_config(name)
    kind = model_class(name, config)
    return outline_config(kind, config, policy, batch=batch, length=length, whole=whole)


def outline_config(
    kind: Any, config: Any, policy: Policy, *, batch: int, length: int, whole: bool = False
) -> StepOutline:
    """Return the training step of the model of class `kind` that `config` describes; see `outline_step`."""

    def outline(taken_as: Policy | None) -> StepOutline:
        few = not whole
        return _outline(*capture_step(kind, config, taken_as, batch=batch, length=length, few=few))

    found = outline(None)
    fused = [site for site in found.sites if site.op == "sdpa"]
    apart = any(quantizes_attention(policy, _layer(site)) for site in fused)
    return outline(load_policy_text(_APART)) if apart else found


def _layer(site: Site) -> Layer:
    return Layer(module=site.module, block=site.block, block_count=site.block_count)


def _outline(shapes: Shapes, captured: Capture) -> StepOutline:
    """Return the step of the whole model: what a block does, all blocks do that it stands for."""
    seen = captured.products()
    sites: list[Site] = []
    numbers: dict[int, dict[int | None, int]] = {}  # of a site seen: its own in each block
    for site in seen:
        for block in shapes.stands(site.module):
            numbers.setdefault(site.number, {})[block] = len(sites)
            sites.append(_site_in(shapes, site, block, len(sites)))
    saved = [
        replace(
            kept,
            readers=kept.readers and tuple((_at(numbers[n], block), i) for n, i in kept.readers),
        )
        for path, kept in _saved(captured, seen)
        for block in shapes.stands(path)
    ]
    traffic: Counter[int | None] = Counter()
    for number, moved in elementwise_traffic(captured.graph, captured.facts).items():
        blocks_alike = (number,) if number is None else shapes.stand_for.get(number, (number,))
        traffic.update(dict.fromkeys(blocks_alike, moved))
    blocks = shapes.size or max((site.block_count or 0 for site in sites), default=0)
    return StepOutline(
        sites=tuple(sites),
        saved=tuple(saved),
        traffic=dict(traffic),
        parameters=dict(shapes.parameters),
        blocks=blocks,
        captured=len(shapes.kept) or blocks,
    )


def _site_in(shapes: Shapes, site: Site, block: int | None, number: int) -> Site:
    if block is None:
        return replace(site, number=number)
    return replace(site, number=number, block=block, module=shapes.path_in(block, site.module))


def _at(numbers: dict[int | None, int], block: int | None) -> int:
    """Return a site's number in `block`; in the block it was seen in, where that is another."""
    return numbers.get(block, next(iter(numbers.values())))


def _saved(captured: Capture, sites: Sequence[Site]) -> Iterator[tuple[str, Saved]]:
    """Yield what the forward keeps for the backward, each with the path of its module."""
    forward, backward, results = cut(captured.joint_module)
    (output,) = forward.graph.find_nodes(op="output")
    known = {site.node.name: site for site in sites}
    inputs = {node.name: node for node in backward.graph.find_nodes(op="placeholder")}
    nodes = {node.name: node for node in captured.graph.nodes}
    for node in output.args[0][results:]:
        value = meta.value(node)
        if node.op == "placeholder" or not isinstance(value, torch.Tensor):
            continue  # a parameter or an input is there anyway
        path = module_path(nodes.get(node.name, node), captured.facts.modules)
        yield (
            path,
            Saved(
                elements=value.numel(),
                bytes=value.numel() * value.element_size(),
                readers=_readers(inputs[node.name], known) if node.name in inputs else None,
            ),
        )


def _readers(source: Node, known: dict[str, Site]) -> tuple[tuple[int, int], ...] | None:
    found: list[tuple[int, int]] = []
    for user in source.users:
        if user.target in VIEWS:
            below = _readers(user, known)
            if below is None:
                return None
            found += below
        elif (site := known.get(user.name)) is not None and site.operands:
            found += [
                (site.number, index)
                for index, operand in enumerate(site.operands)
                if user.args[operand.argument] is source
            ]
        else:
            return None
    return tuple(found) or None
