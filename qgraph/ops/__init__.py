"""The ops qgraph puts in a graph, and what computes them."""

from qgraph.ops.define import (
    checked,
    delayed,
    dequantize,
    fake_quant,
    grouped_mm,
    hadamard,
<<<<<<< HEAD
    observed_mm,
    observed_quant,
=======
    nvfp4_mm,
    pack,
>>>>>>> gpu
    pad_ends,
    pad_rows,
    quant_backward,
    quantize,
    rotate_quant,
    scaled_mm,
    seed,
    shared_amax,
    shared_seed,
    stream,
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
<<<<<<< HEAD
    "observed_mm",
    "observed_quant",
=======
    "nvfp4_mm",
    "pack",
>>>>>>> gpu
    "pad_ends",
    "pad_rows",
    "quant_backward",
    "quantize",
    "rotate_quant",
    "scaled_mm",
    "seed",
    "shared_amax",
    "shared_seed",
    "stream",
]
