"""Which code runs the semantic ops on a device: stated in every report, so no fallback is silent."""

from __future__ import annotations

from qgraph.formats import parse_format
from qgraph.ops.kernels import KERNELS, Chosen, choose
from qgraph.ops.machine import at_hand
from qgraph.ops.work import Quantize

_USUAL, _UNUSUAL = "e2m1/1x16/e4m3/fp32", "nf4/1x64/fp32"


def describe_lowering(device_type: str) -> str:
    """Return what computes `fake_quant` on devices of `device_type`, and why if it is the slow path.

    A report also says of each operand what computes it, by the same table.
    """
    usual, unusual = (_quantizer(text, device_type) for text in (_USUAL, _UNUSUAL))
    if usual.falls_back:
        return f"reference ({usual.why})"
    words = [
        kernel.special for kernel in KERNELS if kernel.device == device_type and kernel.special
    ]
    return ", ".join(words + (["reference for the rest"] if unusual.falls_back else []))


def _quantizer(text: str, device_type: str) -> Chosen:
    return choose(Quantize(format=parse_format(text)), at_hand(device_type))
