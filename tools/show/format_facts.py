"""What there is to know about one number format, as plain data."""

from __future__ import annotations

import math
from typing import Any

from qgraph.formats import BlockFormat, Codebook, Element, FloatFormat, IntFormat

FP32_MAX = 2.0**128 - 2.0**104


def element_facts(fmt: Element) -> dict[str, Any]:
    """Return what is known of an element format, None where it has no such thing."""
    real = fmt if isinstance(fmt, FloatFormat) else None
    distinct, nan, inf = (1 << fmt.bits) if isinstance(fmt, IntFormat) else 0, 0, 0
    if isinstance(fmt, IntFormat):
        distinct -= fmt.range == "symmetric"
    elif isinstance(fmt, Codebook):
        distinct = len(fmt.values)
    else:
        signs, steps = 1 + fmt.signed, 1 << fmt.mantissa_bits
        inf = signs if fmt.specials == "ieee" else 0
        nan = {"ieee": inf * (steps - 1), "nan_only": signs, "fnuz": 1, "none": 0}[fmt.specials]
        again = fmt.signed and fmt.specials != "fnuz"  # -0 is the value 0
        flushed = 0 if fmt.subnormals else signs * (steps - 1)
        distinct = (1 << fmt.bits) - nan - inf - again - flushed
    low = real.min_exponent if real else math.frexp(fmt.min_positive)[1] - 1
    over = "infinity" if inf else "NaN"
    return {
        "name": fmt.name,
        "kind": "float" if real else "integer" if isinstance(fmt, IntFormat) else "codebook",
        "bits": fmt.bits,
        "exponent_bits": real and real.exponent_bits, "mantissa_bits": real and real.mantissa_bits,
        "max": fmt.max, "min": fmt.min,
        "min_normal": real and real.min_normal, "min_positive": fmt.min_positive,
        "bias": real and (real.bias if real.offset is None else real.offset),
        "unit": None if isinstance(fmt, Codebook) else fmt.unit,
        "exponents": [low, fmt.max_exponent],
        "steps_per_binade": real and 1 << real.mantissa_bits,
        "distinct_values": distinct, "nan_codes": nan, "inf_codes": inf,
        "beyond_the_largest": over if real and not real.saturate else "saturates",
        "source": fmt.source or None,
    }  # fmt: skip


def block_facts(fmt: BlockFormat) -> dict[str, Any]:
    """Return what is known of a block format; the ratio is that of two magnitudes in one block."""
    element, scale = fmt.element, fmt.scale
    least, top = element.min_positive, max(element.max, -element.min)
    if isinstance(element, Codebook):
        least = min(abs(value) for value in element.values if value)
    ratio = (1 << element.bits) - 1 if fmt.asymmetric else top / least
    power = math.ldexp(1.0, (1 << (scale.exponent_bits - 1)) - 1) if scale.exponent_bits else None
    ends = {"power": (power, power and 1 / power), "fp32": (FP32_MAX, 2.0**-149)}
    if scale.element:
        ends["float"] = (scale.element.max, scale.element.min_positive)
    largest, smallest = ends.get(scale.kind, (None, None))
    return {
        "name": str(fmt),
        "bits_per_element": fmt.bits_per_element,
        "block": {"shape": str(fmt.block), "across": fmt.block.across, "along": fmt.block.along},
        "scale": {
            "format": scale.name, "rounding": scale.rounding, "range": str(scale.range),
            "bits": scale.bits, "max": largest, "min_positive": smallest,
        },
        "tensor_scale": fmt.tensor_scale,
        "dialect": fmt.dialect,
        "largest_over_smallest": float(ratio),
        "element": element_facts(element),
    }  # fmt: skip


def grid(fmt: Element) -> list[tuple[int, float | None]]:
    """Return every code and its value, None for a code that is never written."""
    import torch

    from qgraph.numerics import decode

    found = decode(torch.arange(1 << fmt.bits, dtype=torch.int32), fmt).tolist()
    end = len(fmt.values) if isinstance(fmt, Codebook) else len(found)
    symmetric = isinstance(fmt, IntFormat) and fmt.range == "symmetric"
    unused = {*range(end, len(found)), *([len(found) // 2] if symmetric else [])}
    return [(code, None if code in unused else value) for code, value in enumerate(found)]


def short(value: Any) -> str:
    """Return a limit in few characters, - for none."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    text = f"{value:.6g}"
    return text if len(text) <= 8 else f"{value:.3g}"
