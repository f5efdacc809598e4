"""Optimizers whose states, and whose parameters, are kept in the formats a policy names.

    optimizer = qgraph.quantize_optimizer(torch.optim.AdamW(model.parameters()), policy, model)

It stays an AdamW: its class gets a `step` that unpacks the states of a few parameters, lets the
optimizer update those, and packs them again, so that whole states in high precision never exist.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qgraph.compat import stepping
from qgraph.doors import PolicyLike, as_policy
from qgraph.errors import ModelError, PolicyError, QGraphWarning
from qgraph.policy import EMBEDDINGS, GROUPS, Policy, did_you_mean, names_module
from qgraph.training.states.keeping import Keeper
from qgraph.training.states.packing import Packed, is_saved

Kind = TypeVar("Kind", bound=Optimizer)
CHUNK = 1 << 22  # elements whose states are unpacked at one time, at least


def quantize_optimizer(optimizer: Kind, policy: PolicyLike, model: nn.Module | None = None) -> Kind:
    """Keep `optimizer`'s states as the policy's `optimizer` and `parameters` say; return it.

    The optimizer itself is changed: it keeps its class, groups, hooks and schedulers. It may have
    states already. `model` tells which module a parameter belongs to, which `keep` asks for.

    Where the policy says nothing of states or of updates, nothing changes.

    Raises: PolicyError if the optimizer has no state of a name in the policy; ModelError if the
        optimizer cannot be taken apart, or if parameters are not stored as the policy says.
    """
    chosen = as_policy(policy)
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the one that steps
    if not isinstance(inner, Optimizer):
        raise ModelError(f"quantize_optimizer takes a torch Optimizer, not {type(inner).__name__}")
    parameters = chosen.parameters
    if chosen.optimizer is None and (parameters is None or not parameters.updates):
        return optimizer
    if isinstance(inner, _Quantized):
        if inner._keeper.fingerprint == chosen.fingerprint():
            return optimizer
        raise ModelError("this optimizer is quantized already, as another policy says")
    _check_steps(inner)
    _check_states(inner, chosen)
    for warning in chosen.optimizer.warnings if chosen.optimizer else ():
        warnings.warn(warning, QGraphWarning, stacklevel=2)
    keeper = Keeper(chosen, *_kept(inner, chosen, model))
    keeper.check(inner)
    base = type(inner)
    inner.__class__ = _quantized_class(base)  # type: ignore[arg-type]
    inner.__dict__.pop("step", None)  # a scheduler's: what it does, `_Quantized.step` does
    inner._keeper = keeper  # type: ignore[attr-defined]
    for group in inner.param_groups:
        _settle(group, inner.state, keeper)
    return optimizer


def optimizer_for(trainer: Any, policy: PolicyLike) -> Optimizer:
    """Make the optimizer of a Hugging Face Trainer and keep its states as the policy says; return it.

    Call it before `trainer.train()`; a checkpoint it resumes from may be packed or not. A callback
    may call `quantize_optimizer` in `on_train_begin` instead.

    Raises: as `quantize_optimizer`.
    """
    optimizer: Optimizer = trainer.create_optimizer()
    return quantize_optimizer(optimizer, policy, trainer.model)


def state_bytes(optimizer: Optimizer) -> dict[str, int]:
    """Return the bytes of an optimizer's states by name, as they lie in memory between steps."""
    inner = getattr(optimizer, "optimizer", optimizer)
    total: dict[str, int] = defaultdict(int)
    for state in inner.state.values():
        for name, value in state.items():
            if isinstance(value, Packed):
                total[name] += value.nbytes
            elif isinstance(value, Tensor):
                total[name] += _here(value).nbytes
    return dict(total)


def unpack_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dict with every packed state as an ordinary tensor."""
    state = {
        index: {
            name: Packed.from_dict(value, value["codes"].device).unpack()
            if is_saved(value)
            else value
            for name, value in values.items()
        }
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


class _Quantized(Optimizer):
    """What is put before an optimizer's own class."""

    _keeper: Keeper

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes a copy: its class is made anew, and knows the copy's own parameters."""
        base: Any = type(self).__mro__[2]
        return _empty, (base,), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_keeper": self._keeper.by_number(_parameters(self))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept_by = state.pop("_keeper", None)
        super().__setstate__(state)
        if kept_by is None:  # a state dict is loaded
            return
        policy, *kept = kept_by
        every = _parameters(self)
        self._keeper = Keeper(policy, *({id(every[i]) for i in numbers} for numbers in kept))
        self._keeper.check(self)

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepping.count_step(self)
        base: Any = type(self).__mro__[2]  # the optimizer's own class: after ours and this
        step = stepping.without_hooks(base.step)
        keeper, groups = self._keeper, self.param_groups
        for group in groups:
            whole = group["params"]
            keeper.tick(group)
            try:
                self.param_groups = [group]
                for chunk in _chunks(whole, base):
                    group["params"] = chunk
                    opened = keeper.open(chunk, self.state)
                    try:
                        step(self)
                    finally:
                        keeper.close(opened, chunk, self.state, group)
            finally:
                group["params"] = whole
                self.param_groups = groups
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict: packed states as dictionaries of codes and scales.

        States sharded over processes are unpacked: they may be loaded by another number of them.
        """
        found = super().state_dict()
        state = {
            index: {name: _savable(value) for name, value in values.items()}
            for index, values in found["state"].items()
        }
        return {**found, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, packed in any format or not; states are kept as the policy says."""
        plain = {
            index: {name: value for name, value in values.items() if not is_saved(value)}
            for index, values in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": plain})
        saved = itertools.chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        for group in self.param_groups:
            for parameter, index in zip(group["params"], saved, strict=False):
                values = state_dict["state"].get(index, {})
                own = self.state[parameter] if values else {}
                for name, value in values.items():
                    if is_saved(value):
                        own[name] = dict(value)
                    elif isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                        own[name] = value.to(parameter.device, copy=True)  # in its own dtype
            _settle(group, self.state, self._keeper)


_Quantized.step = stepping.as_own_step(_Quantized.step)  # type: ignore[method-assign]


def _settle(group: dict[str, Any], state: Any, keeper: Keeper) -> None:
    """Bring states that were loaded or made before into the policy's formats."""
    for parameter in group["params"]:
        own = state.get(parameter)
        if not own:
            continue
        for name, value in list(own.items()):
            if is_saved(value):
                own[name] = Packed.from_dict(value, parameter.device)
        keeper.settle(parameter, own, group, rounded=keeper.has_rounded(group))


def _savable(value: Any) -> Any:
    if not isinstance(value, Packed):
        return value
    return value.to_dict() if value.layout is None else value.unpack()


def _chunks(parameters: list[Tensor], base: type[Optimizer]) -> Iterator[list[Tensor]]:
    """Give parameters with gradients, a few at a time.

    An optimizer that is not torch's may count its own steps in the group: it gets all at once.
    """
    ready = [p for p in parameters if p.grad is not None]
    whole = not base.__module__.startswith("torch.optim")
    chunk, size = [], 0
    for parameter in ready:
        chunk.append(parameter)
        size += _here(parameter).numel()
        if size >= CHUNK and not whole:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _here(value: Tensor) -> Tensor:
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local


def _check_steps(optimizer: Optimizer) -> None:
    own = vars(optimizer).get("step")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ModelError("LBFGS keeps one state for all parameters: none of its own to quantize")
    if own is not None and not stepping.is_schedulers(own):
        what = own.__func__ if isinstance(own, MethodType) else own
        raise ModelError(
            f"something replaced this optimizer's step by {getattr(what, '__qualname__', what)}",
            "call qgraph.quantize_optimizer before that",
        )


def _check_states(optimizer: Optimizer, policy: Policy) -> None:
    """Raise PolicyError unless the optimizer has every state the policy names."""
    if policy.optimizer is None:
        return
    known, kind = state_names(optimizer), type(optimizer).__name__
    for name in policy.optimizer.states:
        if name in known:
            continue
        fix = did_you_mean(name, known) if known else "remove it: with these settings it keeps none"
        raise PolicyError(
            policy.optimizer.places.get(name, policy.path or policy.name),
            f"optimizer.{name}",
            f"{kind} keeps no state of that name",
            fix,
        )


@torch.no_grad()
def state_names(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the names of the states that an optimizer keeps in the shape of its parameters.

    Found by one step of its own code on a small parameter, in each group; nothing of it changes.
    """
    names: dict[str, None] = {}
    for group in optimizer.param_groups:
        like = next(iter(group["params"]), None)
        if like is None:
            continue
        trial = nn.Parameter(torch.zeros(4, 3, dtype=torch.float32, device=like.device))
        trial.grad = torch.zeros_like(trial)
        other: Any = object.__new__(type(optimizer))
        other.__dict__.update(vars(optimizer))
        other.__dict__.pop("step", None)
        other.state = defaultdict(dict)
        other.param_groups = [{**group, "params": [trial]}]
        stepping.without_hooks(type(optimizer).step)(other)
        names |= {
            name: None
            for name, value in other.state[trial].items()
            if isinstance(value, Tensor) and value.shape == trial.shape
        }
    return tuple(names)


@functools.cache
def _quantized_class(base: type[Optimizer]) -> type[Optimizer]:
    """Return the class of optimizers of class `base` whose states are quantized."""
    return type(f"Quantized{base.__name__}", (_Quantized, base), {})


def _empty(base: Any) -> Optimizer:
    """Return an optimizer that waits for its state."""
    found = _quantized_class(base)
    return found.__new__(found)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _kept(
    optimizer: Optimizer, policy: Policy, model: nn.Module | None
) -> tuple[set[int], set[int]]:
    """Return the ids of parameters whose states stay high, and of those whose updates do."""
    states = policy.optimizer.keep if policy.optimizer else ()
    updates = policy.parameters.keep if policy.parameters else ()
    if not (states or updates):
        return set(), set()
    if model is None:
        raise ModelError(
            "the policy keeps modules, and the optimizer does not know its parameters' modules",
            "call qgraph.quantize_optimizer(optimizer, policy, model)",
        )
    found: tuple[set[int], set[int]] = (set(), set())
    used: set[str] = set()
    for path, module in model.named_modules():
        for globs, ids in zip((states, updates), found, strict=True):
            if hits := [glob for glob in globs if names_module(glob, path)]:
                ids |= {id(p) for p in module.parameters()}
                used |= {*hits}
    for glob in (*states, *updates):
        if glob not in {*used, *EMBEDDINGS, *GROUPS["head"]}:
            warnings.warn(f"keep: no module is called '{glob}'", QGraphWarning, stacklevel=3)
    return found
