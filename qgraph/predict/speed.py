"""What multiplies a product's operands: what runs, and what the device's matrix unit could take.

What runs is what the target `native` does on such a device, by the same table of kernels. What the
matrix unit could take is what its maker says of it; no kernel of qgraph need use it.
"""

from __future__ import annotations

from collections.abc import Mapping

from qgraph.errors import QGraphError
from qgraph.formats import BlockFormat, FloatFormat, IntFormat
from qgraph.ops import Device, Kind, Machine, choose
from qgraph.passes import Plan, multiply_of
from qgraph.policy import OperandPolicy

_FLOATS: dict[str, Kind] = {
    "e4m3": "fp8", "e5m2": "fp8", "e3m2": "fp6", "e2m3": "fp6", "e2m1": "fp4", "bf16": "bf16", "fp16": "bf16",
}  # fmt: skip
_ORDER: tuple[Kind, ...] = ("bf16", "int8", "fp8", "fp6", "int4", "fp4")  # the widest first
SPEEDS: dict[Kind, float] = {"int8": 2, "fp8": 2, "fp6": 2, "int4": 4, "fp4": 4}


def stored_kind(operands: tuple[OperandPolicy, ...]) -> Kind:
    """Return the kind of the wider operand by its element alone; `bf16` where one is high."""
    kinds = [_kind(operand.format) or "bf16" for operand in operands] or ["bf16"]
    return min(kinds, key=_ORDER.index)


def runs_as(plan: Plan, machine: Machine) -> tuple[Kind, str]:
    """Return what is multiplied on `machine` under the target `native`, and why it is not codes."""
    if plan.status != "quantized":
        return "bf16", "not quantized"
    chosen = choose(multiply_of(plan), machine)
    return chosen.kernel.unit, chosen.why if chosen.falls_back else ""


def unit_kind(device: Device, operands: tuple[OperandPolicy, ...]) -> tuple[Kind, str]:
    """Return what the matrix unit of `device` could multiply, and why not codes, or how they are scaled."""
    formats = [operand.format for operand in operands]
    if not formats or any(fmt is None for fmt in formats):
        return "bf16", "an operand is high" if any(formats) else "not quantized"
    kinds: list[Kind] = []
    for fmt in formats:
        assert fmt is not None
        kind = _kind(fmt)
        if kind == "int4" and "int4" not in device.peaks:
            kind = "int8"  # the same integers
        if kind is None or kind not in device.peaks:
            return "bf16", f"no unit for {fmt.element.name}"
        if reason := _scales(device, fmt, kind):
            return "bf16", reason
        kinds.append(kind)
    if len({kind.startswith("int") for kind in kinds}) > 1:
        return "bf16", "an integer with a float"
    ways = {_way(fmt) for fmt in formats if fmt is not None}
    if len(ways) > 1:
        return "bf16", f"two ways of scaling: {' and '.join(sorted(ways))}"
    inside = ways <= {"after", *device.block_scales}
    return min(kinds, key=_ORDER.index), "" if inside else "sums scaled by the kernel"


def read_speeds(text: str) -> dict[Kind, float]:
    """Return speeds relative to bf16 from text such as `fp8=2,fp4=4`; others keep their default.

    Raises: QGraphError naming the kinds there are.
    """
    speeds = dict(SPEEDS)
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        kind = next((kind for kind in SPEEDS if kind == name), None)
        try:
            speed = float(value)
        except ValueError:
            speed = 0.0
        if kind is None or not 0 < speed < 1000:
            raise QGraphError(
                f"--speeds: '{part.strip()}' is not a kind and its speed",
                f"write --speeds fp8=2,fp4=4; kinds: {', '.join(SPEEDS)}",
            )
        speeds[kind] = speed
    return speeds


def speed_of(speeds: Mapping[Kind, float], kind: Kind) -> float:
    """Return how fast `kind` is multiplied, bf16 being 1."""
    return speeds.get(kind, 1.0)


def _kind(fmt: BlockFormat | None) -> Kind | None:
    if fmt is None:
        return None
    element = fmt.element
    if isinstance(element, IntFormat):
        whole = element.range != "asymmetric" and element.bits <= 8
        return ("int4" if element.bits <= 4 else "int8") if whole else None
    return _FLOATS.get(element.name) if isinstance(element, FloatFormat) else None


def _way(fmt: BlockFormat) -> str:
    """Return how a product's sums are scaled: `after` it, `nvfp4` or `mx` in the unit, or `blocks`."""
    if fmt.scale.name == "none" or (fmt.block.along is None):
        return "after"
    if fmt.block.along == 16 and fmt.scale.name == "e4m3":
        return "nvfp4"
    if fmt.block.along == 32 and fmt.scale.name == "ue8m0":
        return "mx"
    return "blocks"


def _scales(device: Device, fmt: BlockFormat, kind: Kind) -> str:
    """Return why the unit cannot work under these scales, or nothing."""
    way, along = _way(fmt), fmt.block.along
    if way == "after" or way in device.block_scales:
        return "" if way != "nvfp4" or kind == "fp4" else "e4m3 scales of 16 are for e2m1 alone"
    if along is not None and along >= 32 and along % 32 == 0:
        return ""  # the kernel scales the sum of each block
    return f"no unit for {fmt.scale.name} scales of {along}"
