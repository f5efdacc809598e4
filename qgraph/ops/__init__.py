"""The ops qgraph puts in a graph, and what computes them."""

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
from qgraph.ops.devices import DEVICES, Device, DeviceError, Kind, find_device
from qgraph.ops.gpu.launch import OPTIONS, Launch
from qgraph.ops.gpu.product import why_no_nvfp4
from qgraph.ops.history import BUFFER, history_of, make_store, row_of
from qgraph.ops.kernels import KERNELS, Chosen, choose, product_named
from qgraph.ops.lowering import describe_lowering
from qgraph.ops.machine import Machine, at_hand, forget_machines, machine_of
from qgraph.ops.native.int8 import MAX_SUMMED
from qgraph.ops.observe import Record, Recorder, make_recorder
from qgraph.ops.quantizing import codes, element_steps
from qgraph.ops.shared import know_group
from qgraph.ops.work import How, Kernel, Known, Multiply, Quantize, Rotate, Wanted

__all__ = [
    "BUFFER",
    "DEVICES",
    "KERNELS",
    "MAX_SUMMED",
    "OPTIONS",
    "Chosen",
    "Device",
    "DeviceError",
    "How",
    "Kernel",
    "Kind",
    "Known",
    "Launch",
    "Machine",
    "Multiply",
    "Quantize",
    "Record",
    "Recorder",
    "Rotate",
    "Wanted",
    "at_hand",
    "checked",
    "choose",
    "codes",
    "delayed",
    "dequantize",
    "describe_lowering",
    "element_steps",
    "fake_quant",
    "find_device",
    "forget_machines",
    "grouped_mm",
    "hadamard",
    "history_of",
    "know_group",
    "machine_of",
    "make_recorder",
    "make_store",
    "nvfp4_mm",
    "observed_mm",
    "observed_quant",
    "pack",
    "pad_ends",
    "pad_rows",
    "product_named",
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
    "why_no_nvfp4",
]
