"""Looking at what quantizers do, in the graph as it runs: telemetry.

A graph names a recorder by its number in this process. A step that is not due costs a look-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, parse_format
from qgraph.numerics import REFERENCE, Kernels, Noise, block_scales, cut, scale_tiles, sqnr_db
from qgraph.ops import state

BEYOND = 1 + 1e-6  # the largest of a block may lie a rounding of the scale above the largest code


@dataclass
class Record:
    """What one quantizer did in a step: sums over its calls, so over micro-batches.

    `squares` and `errors` are of x and of x less its quantization; `clipped` counts elements beyond
    the largest code, `flushed` those that became zero and were not; scales are of whole blocks.
    """

    format: str
    count: int = 0
    squares: float = 0.0
    errors: float = 0.0
    clipped: int = 0
    flushed: int = 0
    scale_min: float = math.inf
    scale_max: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """See `numerics.sqnr_db`; infinite without an error."""
        return sqnr_db(self.squares, self.errors)

    @property
    def norm(self) -> float:
        """The L2 norm of what was quantized: of a grad_output, the gradient's."""
        return math.sqrt(self.squares)


@dataclass(eq=False)
class Recorder:
    """What quantizers note, by place, in a step that is `due`; see `passes/watch/insert_observe.py`.

    `products` has, by place, the squared norms of a product's error and of the product.
    """

    due: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    products: dict[str, tuple[float, float]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget what was noted."""
        self.records.clear()
        self.products.clear()


def make_recorder() -> tuple[int, Recorder]:
    """Return a recorder and the number graphs know it by; it lives as long as the caller keeps it."""
    number, recorder = next(state.RECORDER_NUMBERS), Recorder()
    state.RECORDERS[number] = recorder
    return number, recorder


def note(
    store: int,
    place: str,
    x: Tensor,
    found: Tensor,
    format: str,
    axis: int,
    noise: Noise | None,
    amax: Tensor | None,
    kernels: Kernels = REFERENCE,
) -> None:
    """Note what became of `x`, if the step is due. Shapes: x and found alike."""
    recorder: Recorder | None = state.RECORDERS.get(store)
    if recorder is None or not recorder.due or not x.numel():
        return
    with torch.no_grad():
        record = recorder.records.setdefault(place, Record(format=format))
        _add(record, x.float(), found.float(), parse_format(format), axis, noise, amax, kernels)


def _add(
    record: Record,
    x: Tensor,
    found: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None,
    amax: Tensor | None,
    kernels: Kernels,
) -> None:
    record.count += x.numel()
    record.squares += float(x.square().sum(dtype=torch.float64))
    record.errors += float((x - found).square_().sum(dtype=torch.float64))
    record.flushed += int(((found == 0) & (x != 0)).sum())
    scales = block_scales(x, fmt, axis, noise, kernels, amax)
    scaled = scale_tiles(cut(x.movedim(axis, -1), fmt.block), scales)
    low, high = fmt.element.min * BEYOND, fmt.element.max * BEYOND
    record.clipped += int((scaled > high).sum() + (scaled < low).sum())
    worth = scales.decode if scales.outer is None else scales.decode * scales.outer
    record.scale_min = min(record.scale_min, float(worth.min()))
    record.scale_max = max(record.scale_max, float(worth.max()))


def observed_mm(
    a: Tensor, b: Tensor, high_a: Tensor, high_b: Tensor, store: int, place: str
) -> Tensor:
    """Return a · b; in a step that is due, note how far it is from the product in high precision.

    Shapes: a [M, K], b [K, N], high_a [M, K'], high_b [K', N] -> [M, N].
    """
    found = torch.mm(a, b)
    recorder: Recorder | None = state.RECORDERS.get(store)
    if recorder is not None and recorder.due:
        with torch.no_grad():
            exact = torch.mm(high_a, high_b).float()
            error = float((found.float() - exact).square_().sum(dtype=torch.float64))
            before = recorder.products.get(place, (0.0, 0.0))
            whole = float(exact.square_().sum(dtype=torch.float64))
            recorder.products[place] = (before[0] + error, before[1] + whole)
    return found


def observed_mm_fake(a: Tensor, b: Tensor, *_: object) -> Tensor:
    """Return an empty result of `observed_mm`."""
    return a.new_empty([a.shape[0], b.shape[1]])
