"""What an optimizer's states and parameters are between steps, and during one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from qgraph.doors import DTYPES
from qgraph.errors import ModelError
from qgraph.formats import parse_format, parse_rounding
from qgraph.policy import Policy, Stored
from qgraph.training.states.packing import Packed, pack, round_in_place

MASTER = "master"
_STEP, _SEED = "qgraph_step", "qgraph_seed"  # in each group: what random bits are drawn from
_FORMATS = "qgraph_formats"  # in each group: what its states are rounded to
_SITES = 16  # of one parameter
_WEYL = 0x9E3779B9


class Keeper:
    """Opens the states of some parameters for a step, and closes them again."""

    def __init__(self, policy: Policy, states: set[int], updates: set[int]) -> None:
        """Take the policy, and the ids of parameters whose states and whose updates stay as they are."""
        self._policy, self.fingerprint = policy, policy.fingerprint()
        wanted = policy.optimizer
        self._states = dict(wanted.states) if wanted else {}
        self._packs = wanted is None or wanted.storage == "packed"
        self._kept_states, self._kept_updates = states, updates
        self._parameters = policy.parameters
        self._low = DTYPES[policy.parameters.storage] if policy.parameters else torch.float32
        master = policy.parameters.master if policy.parameters else None
        self._master = master
        if master is not None:
            self._states[MASTER] = master
        self._sites: dict[Tensor, int] = {}
        self._formats = {name: str(state.format) for name, state in self._states.items()}

    def by_number(self, every: Sequence[Tensor]) -> tuple[Policy, list[int], list[int]]:
        """Return what makes this keeper for copies of `every` parameter: kept ones by their number."""
        states, updates = (
            [i for i, value in enumerate(every) if id(value) in kept]
            for kept in (self._kept_states, self._kept_updates)
        )
        return self._policy, states, updates

    def check(self, optimizer: Optimizer) -> None:
        """Count the parameters through, and see that they are stored as the policy says.

        Raises: ModelError if none is.
        """
        every = [p for group in optimizer.param_groups for p in group["params"]]
        self._sites = {p: _SITES * i for i, p in enumerate(every)}
        if self._parameters is None or not self._parameters.updates:
            return
        if not any(p.dtype == self._low for p in every):
            raise ModelError(
                f"the policy stores parameters in {self._parameters.storage}, and none of this optimizer is",
                "call qgraph.compile(model, policy) first",
            )

    def tick(self, group: dict[str, Any]) -> None:
        """Count a step of a group; random bits differ from step to step, and a checkpoint has both numbers.

        The seed is the run's own, so that processes that hold the same parameters draw the same bits.
        """
        group.setdefault(_SEED, torch.initial_seed() & 0xFFFFFFFF)
        group[_STEP] = group.get(_STEP, 0) + 1
        group[_FORMATS] = self._formats

    def open(self, parameters: list[Tensor], state: Any) -> dict[Tensor, tuple[Tensor, Tensor]]:
        """Unpack the states of `parameters`, and widen those whose updates are not to be rounded yet.

        Returns: of the widened, what they were and their gradients.
        """
        opened: dict[Tensor, tuple[Tensor, Tensor]] = {}
        for parameter in parameters:
            own = state.get(parameter) or {}
            for name, value in own.items():
                if isinstance(value, Packed):
                    own[name] = value.unpack()
            if self._widens(parameter):
                assert parameter.grad is not None, "only parameters with gradients are opened"
                opened[parameter] = (parameter.data, parameter.grad)
                wide = own.pop(MASTER, None)
                parameter.data = parameter.data.float() if wide is None else wide
                parameter.grad = parameter.grad.float()
        return opened

    def close(
        self,
        opened: dict[Tensor, tuple[Tensor, Tensor]],
        parameters: list[Tensor],
        state: Any,
        group: dict[str, Any],
    ) -> None:
        """Undo `open`: round updates to the storage dtype, and states to their formats."""
        for parameter in parameters:
            own = state[parameter]
            if parameter in opened:
                low, gradient = opened[parameter]
                wide = parameter.data
                seed, site = self._noise(parameter, group)
                low.copy_(wide if self._master is not None else self._rounded(wide, seed, site))
                parameter.data, parameter.grad = low, gradient
                if self._master is not None:
                    own[MASTER] = wide
            self.settle(parameter, own, group)

    def has_rounded(self, group: dict[str, Any]) -> bool:
        """Whether the states of a group, where they are values, are those of these formats already."""
        return not self._packs and group.get(_FORMATS) == self._formats

    def settle(
        self,
        parameter: Tensor,
        own: dict[str, Any],
        group: dict[str, Any],
        *,
        rounded: bool = False,
    ) -> None:
        """Bring the states of one parameter into their formats; those not packed may be `rounded` already."""
        for index, (name, wanted) in enumerate(self._states.items()):
            value = own.get(name)
            if isinstance(value, Packed):
                same = value.format == self._formats[name]
                if same and self._packs:
                    continue
                value = own[name] = value.unpack()
                if same:
                    continue
            if (
                rounded
                or not isinstance(value, Tensor)
                or not self._quantizes(name, parameter, wanted, value)
            ):
                continue
            seed, site = self._noise(parameter, group)
            if self._packs:
                own[name] = pack(value, wanted, seed, site + index + 1)
            else:
                round_in_place(value, wanted, seed, site + index + 1)
        for name, value in own.items():
            if isinstance(value, Packed) and name not in self._states:
                own[name] = value.unpack()

    def _quantizes(self, name: str, parameter: Tensor, wanted: Stored, value: Tensor) -> bool:
        kept = self._kept_updates if name == MASTER else self._kept_states
        matrix = value.numel() > max(value.shape, default=1)
        here = value.to_local() if hasattr(value, "to_local") else value
        return (
            wanted.format is not None
            and id(parameter) not in kept
            and matrix
            and value.shape == parameter.shape
            and here.numel() > 0
        )

    def _widens(self, parameter: Tensor) -> bool:
        return (
            self._parameters is not None
            and self._parameters.updates
            and parameter.dtype == self._low
            and id(parameter) not in self._kept_updates
        )

    def _rounded(self, wide: Tensor, seed: Tensor, site: int) -> Tensor:
        """Return `wide` on the grid of the storage dtype, rounded at random with 16 bits."""
        assert self._parameters is not None, "only a policy of parameters widens them"
        found = wide.clone()
        cast = Stored(
            format=parse_format(f"{self._parameters.storage}/tensor/none"),
            rounding=parse_rounding("stochastic:16"),
        )
        round_in_place(found, cast, seed, site)
        return found

    def _noise(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, int]:
        seed = group.get(_SEED, 0) + _WEYL * group.get(_STEP, 0)
        if parameter not in self._sites:  # of a group added later
            self._sites[parameter] = _SITES * len(self._sites)
        return torch.tensor([seed & 0xFFFFFFFF]), self._sites[parameter]
