"""Pure tensor functions: the definitions of qgraph's arithmetic."""

from qgraph.numerics.blocks import Noise, dequantize, fake_quant, quantize
from qgraph.numerics.cast import decode, encode, round_to
from qgraph.numerics.hadamard import TE_SIGNS, hadamard
from qgraph.numerics.noise import philox, random_bytes

__all__ = [
    "TE_SIGNS",
    "Noise",
    "decode",
    "dequantize",
    "encode",
    "fake_quant",
    "hadamard",
    "philox",
    "quantize",
    "random_bytes",
    "round_to",
]
