"""Scales from magnitudes: how each kind of block format chooses them.

A scale is returned twice: `encode`, what elements are multiplied or divided by before rounding, and
`stored`, what is kept beside the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import E4M3, Element, FloatFormat
from qgraph.numerics.cast import round_to

FLT_MAX = torch.finfo(torch.float32).max
E8M0_NAN = 255


def two_level(block_amax: Tensor, amax: Tensor, element: Element) -> tuple[Tensor, Tensor, Tensor]:
    """Return (encode factor, E4M3 block scale, tensor scale) of the two-level NVFP4 rule.

        S_enc  = min(M·448 / amax, FLT_MAX), 1 if amax = 0 or S_enc = 0     M = the element's max
        S      = E4M3(min(amax_b · (S_enc · (1/M)), 448))     nearest even, no lower floor
        encode = min(1 / (S · (1/S_enc)), FLT_MAX)
        value  = code · S · (amax / (M·448))

    A block whose S underflows to 0 decodes to 0. NaN anywhere makes the whole tensor NaN;
    after an infinity nothing is finite. When amax / (M·448) is subnormal (amax below about
    3e-35) it loses bits.

    Shapes: block_amax any, amax [] -> as block_amax, as block_amax, [].
    Dtypes: float32.
    Source: Transformer Engine 2, `core_nvfp4.cuh`; torchao's NVFP4 training reference.
    """
    bound = element.max * E4M3.max
    encode_all = _divide(bound, amax).clamp(max=FLT_MAX)
    encode_all = torch.where((amax == 0) | (encode_all == 0), 1.0, encode_all)
    inverse_max = torch.ones((), device=amax.device) / torch.tensor(element.max, device=amax.device)
    wanted = block_amax * (encode_all * inverse_max)
    scale = round_to(wanted, E4M3)
    encode = _divide(1.0, scale * _divide(1.0, encode_all)).clamp(max=FLT_MAX)
    return encode, scale, amax / torch.full_like(amax, bound)


def power_of_two(block_amax: Tensor, element: Element, *, ceil: bool) -> tuple[Tensor, Tensor]:
    """Return (scale, E8M0 byte) of the MX rules; elements are divided by the scale.

    `ceil` (RCEIL): the smallest power of two at or above amax·fp32(1/max), nothing saturates.
    Otherwise (OCP floor): 2**(floor(log2 amax) - the element's largest exponent).
    A zero block takes byte 0 (2**-127); NaN or infinity takes byte 255, and the block is NaN.

    Shapes: any -> the same.
    Dtypes: float32 -> float32 and uint8.
    Source: OCP MX 1.0, 5.3 and 6.3; RCEIL: torchao MX training, Transformer Engine MXFP8.
    """
    if ceil:
        ratio = block_amax * (
            torch.ones_like(block_amax) / torch.full_like(block_amax, element.max)
        )
        mantissa, exponent = torch.frexp(
            ratio
        )  # ratio = mantissa·2**exponent, mantissa in [0.5, 1)
        power = exponent - (mantissa == 0.5).int()
        zero = ratio == 0
    else:
        power = torch.frexp(block_amax).exponent - 1 - element.max_exponent
        zero = block_amax == 0
    byte = torch.where(zero, 0, (power + 127).clamp(0, 254))
    byte = torch.where(block_amax.isfinite(), byte, E8M0_NAN).to(torch.uint8)
    return e8m0_value(byte), byte


def e8m0_value(byte: Tensor) -> Tensor:
    """Return 2**(byte - 127) in float32, NaN for byte 255."""
    bits = byte.to(torch.int32) << 23
    value = torch.where(byte == 0, 0x00400000, bits).to(torch.int32).view(torch.float32)
    return torch.where(byte == E8M0_NAN, torch.nan, value)


def full_precision(block_amax: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    """Return (encode, decode) factors of float32 scaling.

    Floats: encode = max/amax, decode = 1/encode. Integers: decode = amax/max, and elements are
    divided by it (encode is then that divisor). amax 0 gives 1. An infinity gives 1 for floats,
    whose elements saturate, and makes an integer block NaN; an overflowing encode is FLT_MAX.

    Shapes: any -> the same.
    Dtypes: float32.
    Source: Transformer Engine `compute_scale_from_amax`; EfficientLLMs, section 3, for integers.
    """
    if isinstance(element, FloatFormat):
        usable = (block_amax != 0) & ~block_amax.isinf()
        encode = torch.where(usable, _divide(element.max, block_amax).clamp(max=FLT_MAX), 1.0)
        return encode, _divide(1.0, encode)
    decode = block_amax / torch.full_like(block_amax, element.max)
    decode = torch.where(decode == 0, 1.0, decode)  # amax 0, or amax / max underflowed
    return decode, decode


def _divide(number: float, x: Tensor) -> Tensor:
    """Return number / x, correctly rounded; `number / x` would multiply by a reciprocal."""
    return torch.div(torch.full_like(x, number), x)
