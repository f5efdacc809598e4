"""The ops qgraph puts in a graph, and what computes them."""

from qgraph.ops.define import (
    checked,
    delayed,
    dequantize,
    fake_quant,
    grouped_mm,
    hadamard,
    nvfp4_mm,
    pack,
    pad_ends,
    pad_rows,
    quant_backward,
    quantize,
    rotate_quant,
    scaled_mm,
    seed,
)
from qgraph.ops.lowering import describe_lowering

__all__ = [
    "checked",
    "delayed",
    "dequantize",
    "describe_lowering",
    "fake_quant",
    "grouped_mm",
    "hadamard",
    "nvfp4_mm",
    "pack",
    "pad_ends",
    "pad_rows",
    "quant_backward",
    "quantize",
    "rotate_quant",
    "scaled_mm",
    "seed",
]
