"""The audit of what ran: products that torch executed outside our graphs while the model was called.

A graph that is not captured says nothing: Dynamo runs the code as it is. So the first calls of each kind
are watched, and every call counts which graphs ran. The backward needs no watching: what it multiplies
outside our graphs is of a forward that ran outside them.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qgraph.compat import dynamo, watching
from qgraph.doors.callers import Callers
from qgraph.errors import ModelError, QGraphWarning
from qgraph.passes import Report, elsewhere_text, names_product

_Call = Callable[..., Any]
_NEW = 6  # kinds of calls that are watched in each mode; from then on, counts tell
_SURPRISES = 64  # calls that ran other graphs; a model that always does is not watched for ever
_LOOK = 'TORCH_LOGS="graph_breaks,recompiles" says why'


class Audit:
    """Holds what runs in the calls of one model against the graphs that were made for it.

    With `strict`, what would be warned of is an error.
    """

    def __init__(self, report: Report, callers: Callers, *, strict: bool = False) -> None:
        self._report, self._callers, self._strict = report, callers, strict
        self._numbers = itertools.count()
        self._ran: Counter[int] = Counter()  # graphs, in the call that is under way
        self._recorder: watching.Recording | None = None
        self.inside = False  # whether a call of the model is under way
        self.bypasses = False  # and goes around Dynamo
        self._normal: dict[Hashable, Counter[int]] = {}  # what ran, by the kind of call
        self._left: dict[Hashable, int] = {}  # kinds of calls that are yet watched, by mode
        self._again: set[Hashable] = set()  # modes whose next call is watched
        self._surprises = _SURPRISES
        self._told: set[object] = set()

    def count(self, compiled: _Call) -> _Call:
        """Return a compiled graph such that its runs are counted, and what is in it not recorded."""
        number = next(self._numbers)

        def run(*args: Any) -> Any:
            self._ran[number] += 1
            return self._unseen(compiled, args)

        return run

    def hide(self, compiled: _Call) -> _Call:
        """Return a half such that what is in it is not recorded: a backward may run in a call."""

        def run(*args: Any) -> Any:
            return self._unseen(compiled, args)

        return run

    def _unseen(self, compiled: _Call, args: tuple[Any, ...]) -> Any:
        recorder = self._recorder
        if recorder is None:
            return compiled(*args)
        recorder.pause()
        try:
            return compiled(*args)
        finally:
            recorder.resume()

    def hold(self, call: _Call, plain: _Call) -> _Call:
        """Return `call`, a compiled one, such that what runs in it is held against the report.

        `plain` is the same without Dynamo, which is not asked under a dispatch mode: it would skip the
        model's code for good.
        """

        def held(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return call(*args, **kwargs)
            self.inside = True
            try:
                if mode := watching.dispatch_mode():
                    # While the model is exported nothing is computed.
                    if not watching.without_data():
                        self._tell(
                            "mode",
                            f"this call runs in high precision: under {mode}, which sees every operation, "
                            "nothing is compiled",
                            "call the model outside of it",
                        )
                    self.bypasses = True
                    return plain(*args, **kwargs)
                return self._call(call, args, kwargs)
            finally:
                self.inside = self.bypasses = False

        return watching.entered(held)

    def _call(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # In evaluation torch's encoder layers are one call, with all of their products in it.
        whole = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return self._watch(call, args, kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(whole)

    def _watch(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mode = _mode(self._callers.training)
        kind = (mode, _describe(args), _describe(kwargs))
        graphs = self._report.graphs
        self._ran.clear()
        if not self._is_watched(mode, kind):
            result = call(*args, **kwargs)
            self._compare(mode, kind, compiled=self._report.graphs > graphs)
            return result
        with watching.recorded() as recorder:
            self._recorder = recorder
            try:
                result = call(*args, **kwargs)
            finally:
                self._recorder = None
        self._normal[kind] = Counter(self._ran)
        self._judge(recorder.operations)
        return result

    def _is_watched(self, mode: Hashable, kind: Hashable) -> bool:
        again = mode in self._again
        if watching.in_backward():
            return False
        if not again and (kind in self._normal or not self._left.setdefault(mode, _NEW)):
            return False
        if watching.profiled():  # the user's: it is left alone, and the audit waits
            self._report.unaudited = "a profiler was running in every call so far"
            return False
        self._report.unaudited = ""
        if again:
            self._again.discard(mode)
        else:
            self._left[mode] -= 1
        return True

    def _compare(self, mode: Hashable, kind: Hashable, *, compiled: bool) -> None:
        """Hold which graphs ran against those of watched calls; what is new has the next call watched."""
        usual, ran = self._normal.get(kind), self._ran
        known = [{*graphs} for graphs in self._normal.values() if graphs]
        if (compiled or {*ran} not in known) and self._surprises:
            self._surprises -= 1
            self._again.add(mode)
        expected = usual.total() if usual is not None else min(1, len(known))
        if ran.total() < expected and not compiled:
            self._again.add(mode)
            self._tell(
                "fewer",
                f"{ran.total()} compiled graphs ran in this call, where {expected} did in calls like it: "
                f"torch.compile may have run code of the model as it is, in high precision{_past_limit()}; "
                "the next call is looked at",
                _LOOK,
            )

    def _judge(self, operations: Sequence[watching.Operation]) -> None:
        found = [self._callers.name(operation) for operation in _outermost(operations)]
        new = [product for product in found if product not in self._report.elsewhere]
        self._report.elsewhere.update(found)
        if new:
            self._tell(None, elsewhere_text(new) + _past_limit(), _LOOK)

    def _tell(self, once: object, problem: str, fix: str) -> None:
        if self._strict:
            raise ModelError(problem, fix)
        if once is None or once not in self._told:
            self._told.add(once)
            warnings.warn(f"{problem}; {fix}", QGraphWarning, stacklevel=6)


def _past_limit() -> str:
    return f" (past {dynamo.limit_setting()} nothing is compiled)" if dynamo.past_limit() else ""


def _outermost(operations: Sequence[watching.Operation]) -> list[watching.Operation]:
    """Return the products among `operations`, without those that are parts of others."""
    found: list[watching.Operation] = []
    product = None  # how deep the last one is, while its parts follow
    for operation in operations:
        if product is not None and operation.depth > product:
            continue
        product = operation.depth if names_product(operation.name) else None
        if product is not None:
            found.append(operation)
    return found


def _mode(training: bool) -> Hashable:
    return (
        training,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _describe(value: object) -> Hashable:
    """Return what two calls of one kind have in common: shapes and dtypes, not numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, Mapping):
        return tuple((str(key), _describe(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe, value))
    if isinstance(value, (bool, str)):
        return value
    return type(value).__qualname__
