"""What torch runs in a call, operation by operation, seen without disturbing Dynamo.

A dispatch mode cannot tell: Dynamo skips frames that are called under one. The profiler can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _current_graph_task_id
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy, _profiler_enabled
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig
from torch._dynamo.callback import CallbackTrigger, callback_handler
from torch._dynamo.eval_frame import skip_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import record_function
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation that ran: `aten::mm`, its tensors' shapes, and the code that called it.

    `depth` counts the operations it is part of; `stack` is the innermost first, `file(line): function`.
    """

    name: str
    depth: int
    shapes: tuple[tuple[int, ...], ...]
    stack: tuple[str, ...]


class Recording:
    """Records the operations of this thread, except while something is compiled or it is paused."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._thread = threading.get_ident()
        self._paused: list[record_function | None] = [None]

    def pause(self, *_: object) -> None:
        """Record nothing until `resume`; the two may be nested."""
        if threading.get_ident() != self._thread:
            return
        if self._paused:
            self._paused.append(None)
        elif in_backward():
            # Autograd's engine puts the state of its thread back afterwards: what is recorded in it is
            # only marked.
            mark = record_function(_UNSEEN)
            mark.__enter__()
            self._paused.append(mark)
        else:
            self._stop()
            self._paused.append(None)

    def resume(self, *_: object) -> None:
        """End a `pause`."""
        if threading.get_ident() != self._thread:
            return
        mark = self._paused.pop()
        if mark is not None:
            mark.__exit__(None, None, None)
        elif not self._paused:
            _enable_profiler_legacy(_CONFIG)

    def _stop(self) -> None:
        for records in _disable_profiler_legacy():
            self.operations += _operations(records)


_UNSEEN = "qgraph: not looked at"
# With shapes and stacks; not memory, FLOPs or modules.
_CONFIG = ProfilerConfig(ProfilerState.CPU, True, False, True, False, False, _ExperimentalConfig())


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record what this thread runs in the block; `operations` is complete after it."""
    recorder = Recording()

    # Of what is compiled, torch runs every operation once on stand-ins.
    def start(event: Any) -> None:
        if event.callback_trigger in _COMPILING:
            recorder.pause()

    def end(event: Any) -> None:
        if event.callback_trigger in _COMPILING:
            recorder.resume()

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
    recorder.resume()
    try:
        yield recorder
    finally:
        recorder.pause()
        with suppress(ValueError):  # torch._dynamo.reset() forgets them
            callback_handler.remove_start_callback(start)
            callback_handler.remove_end_callback(end)


_COMPILING = (CallbackTrigger.DYNAMO, CallbackTrigger.LAZY_BACKWARD)


def _operations(records: Any) -> Iterator[Operation]:
    depth, unseen = 0, None
    for record in records:
        if record.kind() == "push":
            if unseen is None and record.name() == _UNSEEN:
                unseen = depth
            if unseen is None:
                yield Operation(
                    name=record.name(),
                    depth=depth,
                    shapes=tuple(tuple(shape) for shape in record.shapes()),
                    stack=tuple(record.stack()),
                )
            depth += 1
        elif record.kind() == "pop":  # of what began before a pause too
            depth = max(0, depth - 1)
            unseen = None if unseen == depth else unseen


def in_backward() -> bool:
    """Whether autograd's engine runs this code: nothing can be recorded in it alone."""
    return _current_graph_task_id() >= 0


def traced() -> bool:
    """Whether torch.jit.trace follows this code."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def profiled() -> bool:
    """Whether a profiler records this thread: the user's, which must be left alone."""
    return bool(_profiler_enabled())


def dispatch_mode() -> str:
    """Return the class of the innermost dispatch mode, which sees every operation; "" without one."""
    modes = _get_current_dispatch_mode_stack()
    return type(modes[-1]).__name__ if modes else ""


def without_data() -> bool:
    """Whether tensors are stand-ins now, as while something captures the model."""
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


def entered(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, whose own code Dynamo does not compile; what it calls that is compiled stays so.

    Another torch.compile around it stops there.
    """
    found: Callable[..., Any] = torch._dynamo.disable(call)
    return found


def passed(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, which Dynamo looks through: it follows it inside a graph, and begins none with it."""
    skip_code(call.__code__)
    return call
