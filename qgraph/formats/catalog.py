"""The element formats that have a name of their own."""

from __future__ import annotations

from dataclasses import replace

from qgraph.formats.element import Codebook, Element, FloatFormat, IntFormat, float32, midpoints

OFP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1"
MX = "OCP Microscaling Formats (MX) 1.0, section 5.3"
LINEAR = "EfficientLLMs, arXiv 2407.11722"
UE5M3_SOURCE = "FP4 design space, arXiv 2509.17791"

E4M3 = FloatFormat(name="e4m3", exponent_bits=4, mantissa_bits=3, specials="nan_only", source=OFP8)
E5M2 = FloatFormat(name="e5m2", exponent_bits=5, mantissa_bits=2, specials="ieee", source=OFP8)
E2M1 = FloatFormat(name="e2m1", exponent_bits=2, mantissa_bits=1, specials="none", source=MX)
E2M3 = FloatFormat(name="e2m3", exponent_bits=2, mantissa_bits=3, specials="none", source=MX)
E3M2 = FloatFormat(name="e3m2", exponent_bits=3, mantissa_bits=2, specials="none", source=MX)
E1M2 = FloatFormat(
    name="e1m2",
    exponent_bits=1,
    mantissa_bits=2,
    specials="none",
    source="LLM-FP4, arXiv 2310.16836",
)
E3M0 = FloatFormat(
    name="e3m0",
    exponent_bits=3,
    mantissa_bits=0,
    specials="none",
    source="LLM-FP4, arXiv 2310.16836",
)
UE5M3 = FloatFormat(
    name="ue5m3", exponent_bits=5, mantissa_bits=3, specials="nan_only", signed=False,
    source=UE5M3_SOURCE,
)  # fmt: skip
UE4M3 = replace(E4M3, name="ue4m3", signed=False, source="PTX ISA 8.7, .ue4m3")
BF16 = FloatFormat(
    name="bf16",
    exponent_bits=8,
    mantissa_bits=7,
    specials="ieee",
    source="bfloat16: float32's top half",
)
FP16 = FloatFormat(
    name="fp16", exponent_bits=5, mantissa_bits=10, specials="ieee", source="IEEE 754-2019 binary16"
)
TF32 = FloatFormat(
    name="tf32", exponent_bits=8, mantissa_bits=10, specials="ieee", source="NVIDIA A100 whitepaper"
)
INT8 = IntFormat(name="int8", bits=8, source=LINEAR)
INT4 = IntFormat(name="int4", bits=4, source=LINEAR)
# Quantiles of a normal distribution with zero made exact. Source: QLoRA, arXiv 2305.14314, appendix E.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def listed(name: str, values: tuple[float, ...], source: str = "") -> Codebook:
    """Return the codebook of these values, each number going to the nearest."""
    return Codebook(name=name, values=values, limits=midpoints(values), source=source)


NF4 = listed("nf4", _NF4, "QLoRA, arXiv 2305.14314, appendix E")
TERNARY = listed("ternary", (-1.0, 0.0, 1.0), "ternary weights, arXiv 1605.04711")
# On its only limit, zero, the even code would be -1; the sign of zero is plus.
BINARY = Codebook(
    name="binary",
    values=(-1.0, 1.0),
    limits=(-float32(2.0**-149),),
    source="BNN, arXiv 1602.02830",
)

ELEMENTS: dict[str, Element] = {
    f.name: f
    for f in (
        E4M3, E5M2, E2M1, E2M3, E3M2, E1M2, E3M0, UE5M3, UE4M3, BF16, FP16, TF32, INT8, INT4, NF4,
        TERNARY, BINARY,
    )
}  # fmt: skip
