"""What a calibration method is: a look at a layer's inputs, and a solution. It sees no graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from qgraph.formats import BlockFormat

Look = Literal["absmax", "gram"]


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A linear layer as a method sees it: y = x · weightᵀ.

    Shapes: weight [outputs, inputs]. `format` is what the policy quantizes the weight to in the forward.
    """

    name: str
    weight: Tensor
    format: BlockFormat


@dataclass(kw_only=True)
class Seen:
    """Statistics of a layer's inputs over all batches; what no method looks at is None.

    Shapes: absmax [inputs], gram [inputs, inputs], the sum of xᵀx.
    Dtypes: float32.
    """

    count: int = 0
    absmax: Tensor | None = None
    gram: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a method found for a layer: new weights, and tensors to be kept beside them."""

    weight: Tensor
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One calibration method; `solve` takes a layer, what was seen of it, and the policy's options."""

    name: str
    looks: frozenset[Look]
    solve: Callable[[LinearLayer, Seen, Mapping[str, Any]], Solution]


def output_error(weight: Tensor, quantized: Tensor, gram: Tensor) -> float:
    """Return the squared error of a layer's outputs over that of the outputs themselves.

    Shapes: weight, quantized [outputs, inputs], gram [inputs, inputs].
    """
    lost, wide, whole = (weight - quantized).double(), weight.double(), gram.double()
    error = float(((lost @ whole) * lost).sum())
    return error / max(float(((wide @ whole) * wide).sum()), 1e-300)
