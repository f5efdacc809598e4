"""What schedulers and profilers leave on an optimizer's `step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

_Step = Callable[..., Any]
_BY_SCHEDULER = "_wrapped_by_lr_sched"


def as_own_step(step: _Step) -> _Step:
    """Return `step` with the hooks that torch puts around an optimizer's own, and known to schedulers.

    A scheduler wraps the `step` of an object it does not know in one that would hide the class's; it
    counts steps by `count_step`.
    """
    wrapped: Any = Optimizer.profile_hook_step(step)
    wrapped.hooked = True
    setattr(wrapped, _BY_SCHEDULER, True)
    return wrapped  # type: ignore[no-any-return]


def is_schedulers(step: object) -> bool:
    """Whether a scheduler put this `step` on an optimizer."""
    return hasattr(step, _BY_SCHEDULER)


def count_step(optimizer: Optimizer) -> None:
    """Tell schedulers that this optimizer steps."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def without_hooks(step: _Step) -> _Step:
    """Return a class's `step` as it was written: hooks are to run once, around a whole step."""
    bare: _Step = getattr(step, "__wrapped__", step)
    return bare
