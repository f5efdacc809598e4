"""Pure tensor functions: the definitions of qgraph's arithmetic."""

from qgraph.numerics.blocks import REFERENCE, Noise
from qgraph.numerics.bound import error_bound
from qgraph.numerics.cast import decode, encode, round_to
from qgraph.numerics.gradient import quant_backward
from qgraph.numerics.hadamard import TE_SIGNS, hadamard, random_signs
from qgraph.numerics.noise import philox, random_bits
from qgraph.numerics.quantize import dequantize, fake_quant, quantize
from qgraph.numerics.sqnr import sqnr_db

__all__ = [
    "REFERENCE",
    "TE_SIGNS",
    "Noise",
    "decode",
    "dequantize",
    "encode",
    "error_bound",
    "fake_quant",
    "hadamard",
    "philox",
    "quant_backward",
    "quantize",
    "random_bits",
    "random_signs",
    "round_to",
    "sqnr_db",
]
