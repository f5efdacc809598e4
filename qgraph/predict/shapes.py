"""A model's training step from its config alone: no weights, no memory, nothing run.

Equal blocks are captured three times and counted as often as the model has them: the first, the
last, and one between that stands for all between. Where blocks differ, all are captured.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qgraph.compat import aot, fake, meta
from qgraph.doors import Capture, capture
from qgraph.models import example_inputs, load_config, model_class
from qgraph.passes import (
    VIEWS,
    Layer,
    Site,
    block_of,
    elementwise_traffic,
    module_path,
    quantizes_attention,
)
from qgraph.policy import Policy, load_policy_text

_DTYPE = torch.bfloat16
_SHOWN = 3  # blocks that are captured where all are alike
_APART = (
    "{qgraph: 1, name: apart, rules: [{match: {op: [qk, pv]}, fprop: {lhs: nvfp4, rhs: nvfp4}}]}"
)

Make = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor that the forward keeps for the backward.

    `readers` are the operands it is, as (number of a site, number of an operand); None if anything but
    products reads it.
    """

    block: int | None
    elements: int
    bytes: int
    readers: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, kw_only=True)
class Step:
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
) -> Step:
    """Return the training step of the model called `name`, captured under `policy` from its config.

    Fused attention is taken apart in every block if `policy` quantizes its products in any. With
    `whole`, every block is captured.

    Raises: ModelError as `load_config` and `capture`.
    """
    config = load_config(name)
    kind = model_class(name, config)
    make = getattr(kind, "from_config", kind)
    return outline_config(make, config, policy, batch=batch, length=length, whole=whole)


def outline_config(
    make: Make, config: Any, policy: Policy, *, batch: int, length: int, whole: bool = False
) -> Step:
    """Return the training step of the model that `make` builds from `config`; see `outline_step`."""
    found = _outline(make, config, False, batch, length, whole)
    fused = [site for site in found.sites if site.op == "sdpa"]
    if any(quantizes_attention(policy, _layer(site)) for site in fused):
        return _outline(make, config, True, batch, length, whole)
    return found


def _outline(make: Make, config: Any, apart: bool, batch: int, length: int, whole: bool) -> Step:
    count = _stack_size(config)
    if not whole and count is not None and count > _SHOWN:
        short = _capture(make, _shortened(config, count), apart, batch, length)
        sizes = {key: p.numel() for key, p in _build(make, config).named_parameters()}
        if (stretched := _stretch(short, count, sizes)) is not None:
            return stretched
    return _capture(make, config, apart, batch, length)


def _layer(site: Site) -> Layer:
    return Layer(module=site.module, block=site.block, block_count=site.block_count)


def _capture(make: Make, config: Any, apart: bool, batch: int, length: int) -> Step:
    model = _build(make, config)
    with fake.mode_of(next(model.parameters())):
        inputs = {
            key: value.to(_DTYPE) if value.is_floating_point() else value
            for key, value in example_inputs(model, batch, length).items()
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        captured = capture(model, inputs, load_policy_text(_APART) if apart else None)
        sites = captured.products()
        traffic = elementwise_traffic(captured.graph, captured.facts)
        saved = tuple(_saved(captured, sites))
    blocks = max((site.block_count or 0 for site in sites), default=0)
    return Step(
        sites=sites,
        saved=saved,
        traffic=traffic,
        parameters={key: p.numel() for key, p in model.named_parameters()},
        blocks=blocks,
        captured=blocks,
    )


def _build(make: Make, config: Any) -> Any:
    """Return the model of `config` in bf16, with weights that have shapes and no numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPE)
    try:
        with fake.new_mode():
            return make(copy.deepcopy(config)).train()
    finally:
        torch.set_default_dtype(before)


def _saved(captured: Capture, sites: Sequence[Site]) -> Iterator[Saved]:
    """Yield what torch's own partitioner, cutting as Inductor does, keeps for the backward."""
    kept: list[Node] = []
    backward: list[GraphModule] = []

    def cut(joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        halves = aot.cut_in_two(joint, inputs, num_fwd_outputs=num_fwd_outputs, **options)
        (output,) = halves[0].graph.find_nodes(op="output")
        kept.extend(output.args[0][num_fwd_outputs:])
        backward.append(halves[1])
        return halves

    aot.compile_joint(captured.joint, cut, lambda module, _: module)
    known = {site.node.name: site for site in sites}
    inputs = {node.name: node for node in backward[0].graph.find_nodes(op="placeholder")}
    nodes = {node.name: node for node in captured.graph.nodes}
    for node in kept:
        value = meta.value(node)
        if node.op == "placeholder" or not isinstance(value, torch.Tensor):
            continue  # a parameter or an input is there anyway
        source = nodes.get(node.name, node)
        path = module_path(source, captured.facts.modules)
        yield Saved(
            block=block_of(path, captured.facts.blocks)[0],
            elements=value.numel(),
            bytes=value.numel() * value.element_size(),
            readers=_readers(inputs[node.name], known) if node.name in inputs else None,
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


def _stack_size(config: Any) -> int | None:
    """Return how many blocks the config asks for, if it speaks of one stack of blocks, all alike."""
    count = getattr(config, "num_hidden_layers", None)
    alone = config.get_text_config() is config and not getattr(config, "is_encoder_decoder", False)
    kinds = [v for v in vars(config).values() if isinstance(v, list) and len(v) == count]
    alike = all(kind == kind[:1] * len(kind) for kind in kinds)
    return count if isinstance(count, int) and alone and alike else None


def _shortened(config: Any, count: int) -> Any:
    short = copy.deepcopy(config)
    for key, value in vars(short).items():
        if isinstance(value, list) and len(value) == count:  # an entry for each block
            setattr(short, key, value[:_SHOWN])
    short.num_hidden_layers = _SHOWN
    return short


def _stretch(short: Step, count: int, parameters: dict[str, int]) -> Step | None:
    """Return `short` with its middle block `count` - 2 times; None if it does not stand for them."""
    looks = [
        [(s.role, s.op, s.shape, s.operand_kinds) for s in short.sites if s.block == block]
        for block in range(_SHOWN)
    ]
    sizes = [_share(short.parameters, block) for block in range(_SHOWN)]
    outside = sum(short.parameters.values()) - sum(sizes)
    whole = sum(parameters.values()) == outside + sum(sizes) + (count - _SHOWN) * sizes[1]
    if short.blocks != _SHOWN or looks[0] != looks[1] or looks[1] != looks[2] or not whole:
        return None
    sites: list[Site] = []
    numbers: dict[tuple[int, int | None], int] = {}
    for site in short.sites:
        for block in _places(site.block, count):
            numbers[site.number, block] = len(sites)
            count_here = None if block is None else count
            module = site.module
            if block is not None:
                module = re.sub(rf"\.{site.block}(?=\.|$)", f".{block}", f".{module}", count=1)[1:]
            sites.append(
                replace(site, number=len(sites), block=block, block_count=count_here, module=module)
            )
    saved = [
        replace(
            kept,
            block=block,
            readers=kept.readers
            and tuple(
                (numbers.get((n, block), numbers.get((n, None), 0)), i) for n, i in kept.readers
            ),
        )
        for kept in short.saved
        for block in _places(kept.block, count)
    ]
    traffic = {b: short.traffic[key] for key in short.traffic for b in _places(key, count)}
    return Step(
        sites=tuple(sites),
        saved=tuple(saved),
        traffic=traffic,
        parameters=parameters,
        blocks=count,
        captured=_SHOWN,
    )


def _places(block: int | None, count: int) -> Sequence[int | None]:
    """Return the blocks that a captured one stands for."""
    return range(1, count - 1) if block == 1 else [count - 1 if block == _SHOWN - 1 else block]


def _share(parameters: dict[str, int], block: int) -> int:
    return sum(size for name, size in parameters.items() if f".{block}." in f".{name}")
