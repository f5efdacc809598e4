"""A model of shapes alone: no weights, and few blocks that stand for all that are alike.

Building it reads no weight and takes no memory for one, and capturing a graph needs none: a model of
billions of parameters is looked at on a laptop, and its plan is that of `load_model`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from qgraph.compat import fake, modules
from qgraph.models.bounds import Bound, bounded
from qgraph.models.examples import example_inputs
from qgraph.models.load import load_config, model_class
from qgraph.models.tasks import text_config
from qgraph.passes import Layer
from qgraph.policy import OPS, ROLES, Policy, first_match


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model of fake tensors in training mode, whole or with few of its blocks.

    `parameters` gives the elements of each parameter of the whole model. Where blocks stand for others,
    `stack` is the path of the list of blocks, and `alike` the numbers of those that are alike, by group.
    """

    model: Any = field(repr=False)
    parameters: Mapping[str, int] = field(repr=False)
    stack: str = ""
    alike: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def stand_for(self) -> Mapping[int, tuple[int, ...]]:
        """The blocks that are kept, in order, and which blocks of the whole model each stands for.

        A group's first and last meet other neighbors than those between, which are one.
        """
        found: dict[int, tuple[int, ...]] = {}
        for first, *rest in self.alike:
            *between, last = rest or [first]
            found |= {first: (first,), last: (last,)}
            if between:
                found[between[0]] = tuple(between)
        return dict(sorted(found.items()))

    @property
    def size(self) -> int:
        """How many blocks the whole model has, if some stand for others."""
        return sum(map(len, self.alike))

    @property
    def kept(self) -> tuple[int, ...]:
        """The blocks that are kept, by the numbers they have in the whole model."""
        return tuple(self.stand_for)

    def inputs(self, batch: int, length: int) -> dict[str, Any]:
        """Return keyword inputs for a training step, shapes alone.

        Raises: ModelError if the model's kind of input is not known.
        """
        with fake.mode_of(next(self.model.parameters())):
            return example_inputs(self.model, batch, length)

    def whole_path(self, path: str) -> str:
        """Return the path in the whole model of what has this path in `model`."""
        number = self._number(path)
        return path if number is None else self._renumbered(path, number, self.kept[number])

    def stands(self, path: str) -> tuple[int | None, ...]:
        """Return the blocks that the block of a module stands for, by its path in the whole model.

        Outside of the stack that is None, once: such a module stands for itself.
        """
        number = self._number(path)
        return (None,) if number is None else self.stand_for[number]

    def path_in(self, block: int, path: str) -> str:
        """Return the path of the module in `block` that the one at `path` stands for."""
        number = self._number(path)
        return path if number is None else self._renumbered(path, number, block)

    def _renumbered(self, path: str, old: int, new: int) -> str:
        return f"{self.stack}.{new}{path.removeprefix(f'{self.stack}.{old}')}"

    def _number(self, path: str) -> int | None:
        if not self.stack or not path.startswith(f"{self.stack}."):
            return None
        number = path.removeprefix(f"{self.stack}.").split(".")[0]
        return int(number) if number.isdigit() else None


def load_shapes(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    few: bool = False,
    policy: Policy | None = None,
) -> Shapes:
    """Return the shapes of a model named as for `load_model`; see `shapes_of`.

    Raises: ModelError as `load_config`.
    """
    config = load_config(name)
    return shapes_of(model_class(name, config), config, dtype=dtype, few=few, policy=policy)


def shapes_of(
    kind: Any,
    config: Any,
    *,
    dtype: torch.dtype | None = None,
    few: bool = False,
    policy: Policy | None = None,
) -> Shapes:
    """Return the shapes of the model of class `kind` that `config` describes, in its dtype or in `dtype`.

    With `few`, of blocks that are alike only the first, one for those between, and the last are kept.
    With a policy, blocks are alike only if it has the same rules for all their products.
    """
    build = getattr(kind, "_from_config", None) or kind.from_config
    options = {} if dtype is None else {"dtype": dtype}
    with bounded(kind.__name__, Bound()):
        model = build(copy.deepcopy(config), **options).train()
    found = Shapes(model=model, parameters={n: p.numel() for n, p in model.named_parameters()})
    if few and (stack := _stack_of(model)):
        found = replace(found, stack=stack, alike=_alike(model, stack, policy))
        _keep(model, stack, found.kept)
    _make_fake(model)
    return found


def _stack_of(model: Any) -> str:
    """Return the path of the list of blocks; nothing unless the config speaks of one, and it is found."""
    config = model.config
    count = getattr(config, "num_hidden_layers", None)
    if text_config(config) is not config or getattr(config, "is_encoder_decoder", False):
        return ""
    lists = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]  # fmt: skip
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    return outer[0] if len(outer) == 1 else ""


def _alike(model: Any, stack: str, policy: Policy | None) -> tuple[tuple[int, ...], ...]:
    """Group the numbers of blocks that have the same modules, tensors, settings and rules."""
    blocks = model.get_submodule(stack)
    settings = _settings(model.config, len(blocks))
    groups: dict[Hashable, list[int]] = {}
    for number, block in enumerate(blocks):
        key = (
            str(block),
            tuple(_tensors(block)),
            tuple(_switches(block)),
            *(str(values[number]) for values in settings.values()),
            None if policy is None else tuple(_rules(policy, stack, number, blocks)),
        )
        groups.setdefault(key, []).append(number)
    return tuple(map(tuple, groups.values()))


def _settings(config: Any, size: int) -> dict[str, Any]:
    """Return what the config says of each block: its lists as long as there are blocks."""
    return {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == size
    }


def _tensors(block: nn.Module) -> Iterator[Hashable]:
    for own in (block.named_parameters(), block.named_buffers()):
        yield from ((name, tuple(value.shape), value.dtype) for name, value in own)


def _switches(block: nn.Module) -> Iterator[Hashable]:
    """Yield what a block's modules are set to that their text may not show."""
    for name, module in block.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, (bool, str)):
                yield name, key, value


def _rules(policy: Policy, stack: str, number: int, blocks: nn.ModuleList) -> Iterator[int | None]:
    for name, _ in blocks[number].named_modules():
        layer = Layer.at(f"{stack}.{number}.{name}".rstrip("."), {stack: len(blocks)})
        for op in OPS:
            for role in ROLES:
                rule = first_match(policy, replace(layer, op=op, role=role))
                yield None if rule is None else rule.number


def _keep(model: Any, stack: str, kept: tuple[int, ...]) -> None:
    blocks = model.get_submodule(stack)
    parent, _, last = stack.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList([blocks[i] for i in kept]))
    for key, values in _settings(model.config, len(blocks)).items():
        setattr(model.config, key, type(values)(values[i] for i in kept))
    model.config.num_hidden_layers = len(kept)


def _make_fake(model: nn.Module) -> None:
    """Put fake tensors of a CPU in the place of all tensors; what is tied stays tied."""
    mode = fake.new_mode()
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, value in modules.parameters_of(module).items():
            if value is not None:
                shape = fake.as_cpu(mode, value.data)
                made.setdefault(id(value), nn.Parameter(shape, requires_grad=value.requires_grad))
                modules.parameters_of(module)[name] = made[id(value)]
        for name, buffer in modules.buffers_of(module).items():
            if buffer is not None:
                made.setdefault(id(buffer), fake.as_cpu(mode, buffer))
                modules.buffers_of(module)[name] = made[id(buffer)]
