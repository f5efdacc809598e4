"""Scales from magnitudes: how each kind of block format chooses them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qgraph.formats import BlockFormat, Element, FloatFormat, Rounding, Scale
from qgraph.numerics.cast import round_to

FLT_MAX = torch.finfo(torch.float32).max
E8M0_NAN = 255


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of a tensor's blocks, shaped to broadcast over its tiles.

    An element is x · encode, or x / encode where `divides`, less `zero`, rounded to a code; a code
    is worth (code + zero) · decode · tensor_scale, or without the last where it is `folded` into
    decode. `stored` is what is kept of `decode`. With `plus_zero` every zero is positive.
    """

    encode: Tensor
    decode: Tensor
    stored: Tensor
    divides: bool = False
    tensor_scale: Tensor | None = None
    folded: bool = False
    zero: Tensor | None = None
    plus_zero: bool = False

    @property
    def visible(self) -> Tensor:
        """`stored`, but NaN where a code is worth NaN: a product of the codes then shows it."""
        if not self.stored.is_floating_point():
            return self.stored
        return torch.where(self.decode.isnan(), torch.nan, self.stored)

    @property
    def outer(self) -> Tensor | None:
        """What a value is multiplied by after decode, if anything."""
        return None if self.folded else self.tensor_scale


def find_scales(
    span: Tensor, whole: Tensor, fmt: BlockFormat, noise: Tensor | None = None, share: float = 1.0
) -> Scales:
    """Return the scales for blocks whose range is `span`, mapped to the element's max / `share`.

    Shapes: span any; whole (the range of the tensor, or of each row) broadcasts to it; noise as
    span, for a scale rounded stochastically -> as span.
    Dtypes: float32; noise int64, a byte an element.
    Source: each rule names its own.
    """
    scale, element = fmt.scale, fmt.element
    if scale.kind == "none":
        one = torch.ones_like(span)
        return Scales(encode=one, decode=one, stored=one)
    if scale.range.kind in ("std", "rms"):  # these give the scale itself
        span = span * element.max if scale.rounding != "rfloor" else span
    if scale.kind == "power":
        return power_of_two(span if share == 1 else span * share, element, scale)
    if scale.element is None:
        return full_precision(span if share == 1 else span * share, element, scale)
    if fmt.two_level and scale.range.kind.startswith("4over6"):
        return four_over_six(span, whole, element, scale, share)
    if fmt.two_level:
        return two_level(span, whole, element, scale.element, _rounded(scale), noise, share)
    return one_level(span * share, element, scale.element, _rounded(scale), noise)


def _rounded(scale: Scale) -> Rounding:
    return Rounding(mode=scale.rounding)


def two_level(
    span: Tensor,
    whole: Tensor,
    element: Element,
    scale: FloatFormat,
    rounding: Rounding,
    noise: Tensor | None = None,
    share: float = 1.0,
) -> Scales:
    """Return the scales of the two-level NVFP4 rule.

        S_enc  = min(M·448 / amax, FLT_MAX), 1 if amax = 0 or S_enc = 0     M = the element's max
        S      = E4M3(min(amax_b · (S_enc · (1/M)), 448))     nearest even, no lower floor
        encode = min(1 / (S · (1/S_enc)), FLT_MAX)
        value  = code · S · (amax / (M·448))

    448 stands for the largest value of the scale's format. A block whose S underflows to 0 decodes
    to 0. NaN anywhere makes the whole tensor NaN; after an infinity nothing is finite. When
    amax / (M·448) is subnormal (amax below about 3e-35) it loses bits.

    Shapes: span (amax_b) any, whole (amax) broadcasts to it -> as span.
    Dtypes: float32.
    Source: Transformer Engine 2, `core_nvfp4.cuh`; torchao's NVFP4 training reference.
    """
    bound = element.max * scale.max
    encode_all = divide(bound, whole).clamp(max=FLT_MAX)
    encode_all = torch.where((whole == 0) | (encode_all == 0), 1.0, encode_all)
    inverse_max = torch.ones((), device=span.device) / torch.tensor(element.max, device=span.device)
    wanted = span * (encode_all * inverse_max)
    wanted = wanted if share == 1 else wanted * share
    stored = round_to(wanted, scale, noise, rounding)
    encode = divide(1.0, stored * divide(1.0, encode_all)).clamp(max=FLT_MAX)
    return Scales(
        encode=encode,
        decode=stored,
        stored=stored,
        tensor_scale=whole / torch.full_like(whole, bound),
    )


def four_over_six(
    span: Tensor, whole: Tensor, element: Element, scale: Scale, share: float
) -> Scales:
    """Return the scales of Transformer Engine's four over six, for one of its two maps.

    As `two_level`, with `scale.range.value` (256, or 448) in the place of 448, and
    S = E4M3(min((amax_b / 6) · S_enc · share, 448)); share 1.5 maps the largest to 4.

    Shapes, dtypes: as `two_level`.
    Source: Transformer Engine 2, NVFP4 reference with `4over6`; Four Over Six (arXiv 2512.02010).
    """
    assert scale.element is not None, "a two-level scale has an element"
    bound = element.max * scale.range.value
    encode_all = divide(bound, whole).clamp(max=FLT_MAX)
    encode_all = torch.where((whole == 0) | (encode_all == 0), 1.0, encode_all)
    wanted = span / torch.full_like(span, element.max) * encode_all
    wanted = wanted if share == 1 else wanted * share
    stored = round_to(wanted, scale.element)
    encode = divide(1.0, stored * divide(1.0, encode_all)).clamp(max=FLT_MAX)
    return Scales(
        encode=encode,
        decode=stored,
        stored=stored,
        tensor_scale=whole / torch.full_like(whole, bound),
    )


def one_level(
    span: Tensor, element: Element, scale: FloatFormat, rounding: Rounding, noise: Tensor | None
) -> Scales:
    """Return scales S = round(span / M) in the scale's format; elements are divided by them.

    No scale is below the format's smallest value above zero. Without a tensor scale, gradients of
    1e-5 are too small for E4M3: their codes become 0. What the format cannot hold saturates, and
    then so do the elements.

    Shapes: any -> the same.
    Dtypes: float32.
    Source: FP4 design space (arXiv 2509.17791), with its guard against scales of zero.
    """
    stored = round_to(span / torch.full_like(span, element.max), scale, noise, rounding)
    stored = stored.clamp(min=scale.min_positive)
    return Scales(encode=stored, decode=stored, stored=stored, divides=True)


def power_of_two(span: Tensor, element: Element, scale: Scale) -> Scales:
    """Return the powers of two of the MX rules; elements are divided by them.

    `rceil`: the smallest at or above amax·fp32(1/max), nothing saturates. `floor` (OCP):
    2**(floor(log2 amax) - the element's largest exponent). `ceil`: the same with the logarithm
    rounded up. `even`: floor after amax is rounded to the element's mantissa, half up. `rfloor`:
    the largest at or below amax/max, as QuEST does.
    A zero block takes byte 0 (2**-127); NaN or infinity takes byte 255, and the block is NaN.
    `ueXm0` with X below 8 has the exponents 1 - 2**(X-1) to 2**(X-1) - 1, and saturates there.

    Shapes: any -> the same.
    Dtypes: float32; stored uint8.
    Source: OCP MX 1.0, 5.3 and 6.3; RCEIL: torchao MX training, Transformer Engine MXFP8; the
    others: torchao `to_mx`.
    """
    finite = span.isfinite()
    if scale.rounding == "rceil":
        ratio = span * (torch.ones_like(span) / torch.full_like(span, element.max))
        mantissa, exponent = torch.frexp(
            ratio
        )  # ratio = mantissa·2**exponent, mantissa in [0.5, 1)
        power = exponent - (mantissa == 0.5).int()
    elif scale.rounding == "rfloor":
        ratio = span
        if scale.range.kind not in ("std", "rms"):
            ratio = span * (torch.ones_like(span) / torch.full_like(span, element.max))
        power = torch.frexp(ratio).exponent - 1
    else:
        ratio = span
        mantissa, exponent = torch.frexp(span)
        power = exponent - 1 - element.max_exponent
        if scale.rounding == "ceil":
            power = power + (mantissa > 0.5).int()
        elif scale.rounding == "even":
            bits = element.mantissa_bits if isinstance(element, FloatFormat) else element.bits - 2
            half = 1 - 2.0 ** -(bits + 2)  # the greatest mantissas round up to 1
            power = power + (mantissa >= half).int()
            finite = finite & ~((mantissa >= half) & (exponent == 128))
    bias = (1 << (scale.exponent_bits - 1)) - 1
    byte = torch.where(ratio == 0, 127 - bias, (power + 127).clamp(127 - bias, 127 + bias))
    byte = byte.clamp(max=254)
    byte = torch.where(finite, byte, E8M0_NAN).to(torch.uint8)
    value = e8m0_value(byte)
    return Scales(encode=value, decode=value, stored=byte, divides=True)


def e8m0_value(byte: Tensor) -> Tensor:
    """Return 2**(byte - 127) in float32, NaN for byte 255."""
    bits = byte.to(torch.int32) << 23
    value = torch.where(byte == 0, 0x00400000, bits).to(torch.int32).view(torch.float32)
    return torch.where(byte == E8M0_NAN, torch.nan, value)


def full_precision(span: Tensor, element: Element, scale: Scale) -> Scales:
    """Return float32 scales.

    Floats: encode = max/amax, decode = 1/encode. Others: decode = amax/max, and elements are
    divided by it. amax 0 gives 1. An infinity gives 1 for floats, whose elements saturate, and
    makes another block NaN; an overflowing encode is FLT_MAX. `pow2` rounds a float's encode down
    to a power of two, any other's decode up.

    Shapes: any -> the same.
    Dtypes: float32.
    Source: Transformer Engine `compute_scale_from_amax`; EfficientLLMs, section 3, for integers.
    """
    if isinstance(element, FloatFormat):
        usable = (span != 0) & ~span.isinf()
        encode = torch.where(usable, divide(element.max, span).clamp(max=FLT_MAX), 1.0)
        if scale.rounding == "pow2":
            exponent = torch.frexp(encode).exponent - 1
            encode = torch.where(
                encode.isfinite(), torch.ldexp(torch.ones_like(encode), exponent), encode
            )
        decode = divide(1.0, encode)
        return Scales(encode=encode, decode=decode, stored=decode)
    decode = span / torch.full_like(span, element.max)
    decode = torch.where(decode == 0, 1.0, decode)  # amax 0, or amax / max underflowed
    if scale.rounding == "pow2":
        mantissa, exponent = torch.frexp(decode)
        power = torch.ldexp(torch.ones_like(decode), exponent - (mantissa == 0.5).int())
        decode = torch.where(decode.isfinite(), power, decode)
    return Scales(encode=decode, decode=decode, stored=decode, divides=True)


def zero_point(low: Tensor, high: Tensor, element: Element, floor: float = 0.0) -> Scales:
    """Return the scales and zero points that map [low, high] to all codes of an integer.

    step = max(high - low, floor) / (2·max), 1 if that is 0; zero = round(low/step - min). Codes are
    round(x/step - zero), clamped.

    Shapes: any -> the same.
    Dtypes: float32.
    Source: EfficientLLMs (arXiv 2407.11722), its asymmetric quantizer.
    """
    span = (high - low).clamp(min=floor)
    step = span / torch.full_like(span, 2 * element.max)
    step = torch.where(step == 0, 1.0, step)
    zero = torch.round(low / step - element.min)
    return Scales(encode=step, decode=step, stored=step, divides=True, zero=zero)


def divide(number: float, x: Tensor) -> Tensor:
    """Return number / x, correctly rounded; `number / x` would multiply by a reciprocal."""
    return torch.div(torch.full_like(x, number), x)
