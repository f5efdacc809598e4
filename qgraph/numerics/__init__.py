"""Pure tensor functions: the definitions of qgraph's arithmetic."""

from qgraph.numerics.blocks import (
    ERRORS,
    REFERENCE,
    ErrorKind,
    Kernels,
    Noise,
    block_scales,
    scale_tiles,
)
from qgraph.numerics.bound import error_bound
from qgraph.numerics.cast import code_dtype, decode, encode, round_to
from qgraph.numerics.functions.softmax import two_pass_softmax
from qgraph.numerics.gradient import quant_backward
from qgraph.numerics.hadamard import TE_SIGNS, hadamard, random_signs
from qgraph.numerics.noise import philox, random_bits
from qgraph.numerics.quantize import dequantize, fake_quant, in_range, quantize, usual_rounding
from qgraph.numerics.scales import Scales
from qgraph.numerics.sqnr import sqnr_db
from qgraph.numerics.storage import as_torch, swizzle, torch_dtype, unswizzle
from qgraph.numerics.tables import encode_by_table
from qgraph.numerics.tiles import check_axis, cut

__all__ = [
    "ERRORS",
    "REFERENCE",
    "TE_SIGNS",
    "ErrorKind",
    "Kernels",
    "Noise",
    "Scales",
    "as_torch",
    "block_scales",
    "check_axis",
    "code_dtype",
    "cut",
    "decode",
    "dequantize",
    "encode",
    "encode_by_table",
    "error_bound",
    "fake_quant",
    "hadamard",
    "in_range",
    "philox",
    "quant_backward",
    "quantize",
    "random_bits",
    "random_signs",
    "round_to",
    "scale_tiles",
    "sqnr_db",
    "swizzle",
    "torch_dtype",
    "two_pass_softmax",
    "unswizzle",
    "usual_rounding",
]
