"""Which switches of a policy's schedule are on, step by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

from qgraph.policy import PLATEAU, Policy, Switch, check_run


class Schedule:
    """A policy's switches over a run of `total` optimizer steps.

    Time alone decides most of them; what tripped, and when, is remembered here and in `state`.

    Raises: PolicyError as `check_run`.
    """

    def __init__(self, policy: Policy, total: int) -> None:
        check_run(policy, total)
        self._switches, self._total = policy.schedule, total
        self._tripped: dict[int, int] = {}
        longest = max((switch.patience for switch in policy.schedule), default=0)
        self._losses: deque[float] = deque(maxlen=2 * longest)

    @property
    def needs_loss(self) -> Switch | None:
        """The first switch that watches the loss, if there is one."""
        return next((switch for switch in self._switches if switch.on == PLATEAU), None)

    def active(self, done: int) -> tuple[int, ...]:
        """Return the numbers of the switches that are on in the step after `done`."""
        return tuple(
            switch.number
            for switch in self._switches
            if switch.is_on(done, self._total, self._tripped.get(switch.number))
        )

    def see_loss(self, done: int, loss: float) -> list[Switch]:
        """Take the loss of the step that was just done; return what a plateau switches on."""
        self._losses.append(loss)
        return self._trip(done, (s for s in self._switches if s.on == PLATEAU and self._is_flat(s)))

    def see_trip(self, done: int, monitor: str) -> list[Switch]:
        """Take it that a monitor tripped; return what that switches on."""
        return self._trip(done, (switch for switch in self._switches if switch.on == monitor))

    def _trip(self, done: int, switches: Iterable[Switch]) -> list[Switch]:
        found = []
        for switch in switches:
            tripped = self._tripped.get(switch.number)
            if tripped is None or not switch.is_on(done, self._total, tripped):
                self._tripped[switch.number] = done
                found.append(switch)
        return found

    def _is_flat(self, switch: Switch) -> bool:
        """Whether the mean loss of the last `patience` steps is hardly below that of as many before."""
        count = switch.patience
        losses = [*self._losses][-2 * count :]
        since = self._tripped.get(switch.number)
        if len(losses) < 2 * count or (since is not None and switch.lasts is None):
            return False
        before, after = math.fsum(losses[:count]) / count, math.fsum(losses[count:]) / count
        return not after < before * (1 - float(switch.improvement) / 100)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must know, as plain data."""
        return {
            "tripped": {str(number): done for number, done in self._tripped.items()},
            "losses": [*self._losses],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._tripped = {int(number): int(done) for number, done in state["tripped"].items()}
        self._losses.clear()
        self._losses.extend(state["losses"])
