"""What AOTAutograd says that inputs and results of a joint graph are; `meta.description` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    GradAOTOutput,
    InputMutationAOTOutput,
    ParamAOTInput,
    TangentAOTInput,
)

_LOCAL = "_local_tensor"  # what a DTensor calls this process's part


def is_parameter(description: Any) -> bool:
    """Whether an input is a parameter of the captured module."""
    return isinstance(description, ParamAOTInput)


def is_buffer(description: Any) -> bool:
    """Whether an input is a buffer of the captured module."""
    return isinstance(description, BufferAOTInput)


def written_inputs(described: Sequence[Any]) -> list[Any]:
    """Return the inputs that results are the new values of."""
    return [d.mutated_input for d in described if isinstance(d, InputMutationAOTOutput)]


def is_state(description: Any) -> bool:
    """Whether an input is a parameter or a buffer of the captured module."""
    return isinstance(description, (ParamAOTInput, BufferAOTInput))


def state_name(description: Any) -> str | None:
    """Return which parameter or buffer of the captured module an input is, None for another input."""
    return getattr(description, "target", None)


def input_number(description: Any) -> int | None:
    """Return which of the captured function's inputs one of the joint graph is, if that is said.

    Of a tensor in parts on several processes, the input of this process's part counts.
    """
    while getattr(description, "attr", "") == _LOCAL:
        description = description.base
    return getattr(description, "idx", None)


def is_tangent(description: Any) -> bool:
    """Whether an input is the gradient of a result."""
    return isinstance(description, TangentAOTInput)


def tangent_number(description: Any) -> int | None:
    """Return which of the captured function's results a tangent is the gradient of, if that is said."""
    return getattr(description.output, "idx", None)


def gradient_name(description: Any) -> str | None:
    """Return which parameter of the captured module a result is the gradient of, None if of none."""
    return getattr(getattr(description, "grad_of", None), "target", None)


def count_results(descriptions: Sequence[Any]) -> int:
    """Return how many results come before the gradients."""
    gradients = (i for i, d in enumerate(descriptions) if isinstance(d, GradAOTOutput))
    return next(gradients, len(descriptions))
