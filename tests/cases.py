"""Which cases of tests run: always, when drawn, and on which versions of torch: see README.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
import torch

NO_EXPERTS = "transformers before 5.23 computes gradients of fp32 experts in Python: in no graph"


def has_experts() -> bool:
    """Whether transformers has an op for the gradients of experts in fp32."""
    import transformers.integrations.moe  # noqa: F401  # it makes the ops

    return hasattr(torch.ops.transformers, "grouped_mm_fallback_backward")


def with_experts() -> pytest.MarkDecorator:
    """Skip a test where transformers has no such op."""
    return pytest.mark.skipif(not has_experts(), reason=NO_EXPERTS)


def is_before(least: tuple[int, int]) -> bool:
    """Whether the torch at hand is older than `least`."""
    return tuple(map(int, torch.__version__.split(".")[:2])) < least


def of_torch(least: tuple[int, int], reason: str) -> pytest.MarkDecorator:
    """Skip a test on a torch before `least`."""
    return pytest.mark.skipif(
        is_before(least), reason=f"torch before {least[0]}.{least[1]}: {reason}"
    )


def mostly_full(
    cases: Iterable[Any], telling: Collection[str], name: Callable[[Any], str] = str
) -> list[Any]:
    """Return the cases as parameters: those named run always, of the others a tenth each time.

    A tuple is the values of several parameters; `name` says what to call it.
    """
    found = {name(case): case for case in cases}
    assert telling, "some cases run always"
    assert set(telling) <= set(found), f"no such cases: {set(telling) - set(found)}"
    return [_parameter(key, case, key in telling) for key, case in found.items()]


def _parameter(key: str, case: Any, telling: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, id=key, marks=() if telling else pytest.mark.full)
