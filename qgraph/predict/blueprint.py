"""A model as shapes alone: no weights, few blocks for all that are alike under the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.compat import fake, modules
from qgraph.doors import Capture, capture
from qgraph.models import example_inputs, load_config, model_class
from qgraph.passes import GraphFacts, Layer
from qgraph.policy import ROLES, Policy, first_match


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A model of fake tensors, in which each kept block stands for `counts` of the whole model's.

    `stack` is the path of the list of blocks, `kept` the numbers they have in the whole model and
    `size` how many there are in it; a model without such a stack is whole.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    parameters: int  # of the whole model
    stack: str = ""
    kept: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    size: int = 0

    def count_of(self, module: str) -> int:
        """Return how many modules of the whole model the one at this (whole-model) path stands for."""
        number = _block_number(module, self.stack)
        return 1 if number is None else self.counts[self.kept.index(number)]

    def capture(self, policy: Policy) -> Capture:
        """Capture the training step; its modules have the paths they have in the whole model."""
        found = capture(self.model, self.inputs, policy)
        if not self.stack:
            return found
        modules = {key: self._whole(path) for key, path in found.facts.modules.items()}
        facts = GraphFacts(
            parameters=found.facts.parameters,
            blocks={**found.facts.blocks, self.stack: self.size},
            modules=modules,
        )
        return replace(found, facts=facts)

    def _whole(self, path: str) -> str:
        number = _block_number(path, self.stack)
        if number is None:
            return path
        head = f"{self.stack}.{number}"
        return f"{self.stack}.{self.kept[number]}{path[len(head) :]}"


def draw(name: str, policy: Policy, batch: int, length: int, dtype: torch.dtype) -> Blueprint:
    """Return the blueprint of a model named as for `load_model`; weights are not read.

    Raises: ModelError as `load_config`, or if the model's inputs are not known.
    """
    config = load_config(name)
    kind = model_class(name, config)
    with torch.device("meta"):
        build = getattr(kind, "_from_config", None) or kind.from_config
        model = build(config, dtype=dtype).train()
    parameters = sum(p.numel() for p in model.parameters())
    stack, blocks = _stack_of(model)
    counts = _counts(_alike(stack, blocks, config, policy))
    if stack:
        _keep(model, stack, blocks, list(counts))
    mode = fake.new_mode()
    inputs = example_inputs(model, batch, length)
    _make_fake(model, mode)
    return Blueprint(
        model=model,
        inputs={key: fake.as_cpu(mode, value) for key, value in inputs.items()},
        parameters=parameters,
        stack=stack,
        kept=tuple(counts),
        counts=tuple(counts.values()),
        size=len(blocks),
    )


def _stack_of(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the path of the list of blocks and the blocks, nothing if the config does not count them."""
    size = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == size and size > 1:
            return name, list(module)
    return "", []


def _alike(stack: str, blocks: list[nn.Module], config: Any, policy: Policy) -> list[list[int]]:
    """Group the blocks' numbers: same modules and same rules for every one of their products."""
    types = getattr(config, "layer_types", None) or [None] * len(blocks)
    groups: dict[object, list[int]] = {}
    sizes = {stack: len(blocks)}
    for number, block in enumerate(blocks):
        rules = tuple(_rules(f"{stack}.{number}", block, sizes, policy))
        groups.setdefault((str(block), types[number], rules), []).append(number)
    return list(groups.values())


def _counts(groups: list[list[int]]) -> dict[int, int]:
    """Return the blocks to keep, in order, and how many each stands for.

    The first and the last of a group meet other neighbors than those between, which are one.
    """
    found: dict[int, int] = {}
    for first, *rest in groups:
        found[first] = 1
        if len(rest) > 1:
            found[rest[0]] = len(rest) - 1
        if rest:
            found[rest[-1]] = 1
    return dict(sorted(found.items()))


def _rules(
    path: str, block: nn.Module, sizes: Mapping[str, int], policy: Policy
) -> Iterator[int | None]:
    for name, _ in block.named_modules():
        layer = Layer.at(f"{path}.{name}".rstrip("."), dict(sizes))
        for op in ("linear", "sdpa", "matmul", "qk", "pv", "conv", "experts"):
            for role in ROLES:
                site = Layer(
                    module=layer.module, block=layer.block, block_count=layer.block_count,
                    op=op, role=role,
                )  # fmt: skip
                rule = first_match(policy, site)
                yield None if rule is None else rule.number


def _keep(model: nn.Module, stack: str, blocks: list[nn.Module], kept: list[int]) -> None:
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    parent, _, last = stack.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList([blocks[i] for i in kept]))
    config.num_hidden_layers = len(kept)
    if types:
        config.layer_types = [types[i] for i in kept]


def _make_fake(model: nn.Module, mode: fake.FakeTensorMode) -> None:
    for module in model.modules():
        parameters, buffers = modules.parameters_of(module), modules.buffers_of(module)
        for name, value in parameters.items():
            if value is not None:
                shape = fake.as_cpu(mode, value.data)
                parameters[name] = nn.Parameter(shape, requires_grad=value.requires_grad)
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = fake.as_cpu(mode, buffer)


def _block_number(path: str, stack: str) -> int | None:
    if not stack or not path.startswith(stack + "."):
        return None
    number = path[len(stack) + 1 :].split(".")[0]
    return int(number) if number.isdigit() else None
