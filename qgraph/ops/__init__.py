"""The ops qgraph puts in a graph, and what computes them."""

from qgraph.ops.chips import Chip, find_chip
from qgraph.ops.codes import takes
from qgraph.ops.define import (
    checked,
    delayed,
    dequantize,
    fake_quant,
    grouped_mm,
    hadamard,
    nvfp4_mm,
    observed_mm,
    observed_quant,
    pack,
    pad_ends,
    pad_rows,
    quant_backward,
    quantize,
    quantize_both,
    rotate_quant,
    scaled_mm,
    seed,
    shared_amax,
    shared_seed,
    stream,
)
from qgraph.ops.devices import Device, Kind, find_device
from qgraph.ops.gpu import Launch
from qgraph.ops.history import make_store, row_of
from qgraph.ops.lowering import describe_lowering
from qgraph.ops.native import MAX_SUMMED, native_kind, why_no_nvfp4
from qgraph.ops.observe import Record, make_recorder
from qgraph.ops.packed import FORMATS
from qgraph.ops.shared import know_group

__all__ = [
    "FORMATS",
    "MAX_SUMMED",
    "Chip",
    "Device",
    "Kind",
    "Launch",
    "Record",
    "checked",
    "delayed",
    "dequantize",
    "describe_lowering",
    "fake_quant",
    "find_chip",
    "find_device",
    "grouped_mm",
    "hadamard",
    "know_group",
    "make_recorder",
    "make_store",
    "native_kind",
    "nvfp4_mm",
    "observed_mm",
    "observed_quant",
    "pack",
    "pad_ends",
    "pad_rows",
    "quant_backward",
    "quantize",
    "quantize_both",
    "rotate_quant",
    "row_of",
    "scaled_mm",
    "seed",
    "shared_amax",
    "shared_seed",
    "stream",
    "takes",
    "why_no_nvfp4",
]
