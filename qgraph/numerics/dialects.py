"""The scales of other implementations of NVFP4 and FP8, where they differ from Transformer Engine's.

Each takes block ranges `span` and the tensor's range `whole`, in float32, and rounds to nearest in
every operation, in the order written. E4(v) is the nearest E4M3 number, saturating.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph.formats import E4M3, BlockFormat, Rounding
from qgraph.numerics.cast import round_to
from qgraph.numerics.scales import Scales, divide

EDEN_GROUP = 128  # elements that share one correction: the length of Quartet-II's rotation
EDEN_ROUNDING = Rounding(mode="stochastic", bits=16)
# Room for the correction, so that neither codes nor scales saturate.
_EDEN_MAX, _EDEN_BOUND = 6 / ((17 / 16) * 0.93), 255.99


def torchao_ptq(span: Tensor, whole: Tensor, fmt: BlockFormat, share: float = 1.0) -> Scales:
    """Torchao's inference format.

        one level:  S = E4(clamp(amax_b/6, 2**-6, 448))            code = x · (1/S)
        two levels: T = amax/2688,  S = E4(clamp((amax_b/6)/T, 2**-6, 448))
                    code = x · ((1/T)/S),  value = code · (T·S)

    A tensor of zeros is NaN with two levels.

    Source: torchao, `prototype/mx_formats/nvfp4_tensor.py`, `nvfp4_quantize`.
    """
    wanted = span / torch.full_like(span, 6)
    if not fmt.two_level:
        stored = round_to(wanted.clamp(2.0**-6, 448), E4M3)
        return Scales(encode=divide(1.0, stored), decode=stored, stored=stored)
    scale = whole / torch.full_like(whole, 2688)
    stored = round_to((wanted / scale).clamp(2.0**-6, 448), E4M3)
    return Scales(
        encode=divide(1.0, scale) / stored,
        decode=scale * stored,
        stored=stored,
        tensor_scale=scale,
        folded=True,
    )


def modelopt(span: Tensor, whole: Tensor, fmt: BlockFormat, share: float = 1.0) -> Scales:
    """ModelOpt's: T = amax/2688, S = E4(clamp(amax_b/(6·T), 2**-9, 448)), a ratio of 0 taken as 1.

    code = x/(S·T), value = code · (S·T). A tensor of zeros is NaN; zeros are all positive.

    Source: NVIDIA ModelOpt, `torch/quantization/qtensor/nvfp4_tensor.py`.
    """
    scale = whole / torch.full_like(whole, 2688)
    ratio = span / (scale * 6)
    stored = round_to(torch.where(ratio == 0, 1.0, ratio).clamp(2.0**-9, 448), E4M3)
    both = stored * scale
    return Scales(
        encode=both,
        decode=both,
        stored=stored,
        divides=True,
        tensor_scale=scale,
        folded=True,
        plus_zero=True,
    )


def quartet2(span: Tensor, whole: Tensor, fmt: BlockFormat, share: float = 1.0) -> Scales:
    """Quartet-II's, as its reference kernels have it: zero scales become 1.

        T = (amax/bound)/M, 1 for a tensor of zeros     bound 448, or 256 with 4over6    M = 6
        S = E4((amax_b/M)/T), 0 taken as 1              mapped to 4: E4((amax_b/M · 1.5)/T)
        code = x/(S·T), value = code · (S·T)

    With `eden` scales bound is 255.99 and M is 6/0.988125, the scales are corrected afterwards
    (see `eden`), and value = code · S · T. The reference rounds codes to nearest with ties away
    (`rounding: nearest_away`), its CUDA kernels to even.

    Source: Quartet-II, its forward and EDEN quantizers, described in our own words.
    """
    eden = fmt.scale.rounding == "eden"
    top = _EDEN_MAX if eden else 6.0
    bound = _EDEN_BOUND if eden else 256.0 if fmt.scale.range.kind == "4over6" else 448.0
    limit = torch.full_like(whole, top)
    scale = torch.where(whole == 0, 1.0, (whole / torch.full_like(whole, bound)) / limit)
    wanted = span / torch.full_like(span, top)
    wanted = wanted if share == 1 else wanted * share
    stored = round_to(wanted / scale, E4M3)
    stored = torch.where(stored == 0, 1.0, stored)
    both = stored * scale
    decode = stored if eden else both
    return Scales(
        encode=both, decode=decode, stored=stored, divides=True, tensor_scale=scale, folded=not eden
    )


def qutlass(span: Tensor, whole: Tensor, fmt: BlockFormat, share: float = 1.0) -> Scales:
    """Qutlass's one-level rule (`abs_max`, global scale 1): S = E4(amax_b · fp32(1/6)).

    code = x · (1/S), 0 where S is 0; value = code · S. NaN stays NaN here; there it becomes 6·S.

    Source: qutlass, its fused NVFP4 quantization.
    """
    stored = round_to(span * (torch.ones_like(span) / torch.full_like(span, 6)), E4M3)
    encode = torch.where(stored == 0, 0.0, divide(1.0, stored))
    return Scales(encode=encode, decode=stored, stored=stored)


def torchao(span: Tensor, whole: Tensor, fmt: BlockFormat, share: float = 1.0) -> Scales:
    """Torchao's FP8 training: encode = fp32(M / max(amax, 1e-12)), the quotient in float64.

    code = x · encode, value = code · (1/encode): the reciprocal that its product is given. `pow2`
    rounds encode down to a power of two, by bits; torchao's float32 logarithm rounds it up where encode
    is an ulp under one. After an infinity encode is 0, and no value is finite.

    Source: torchao, `float8/float8_utils.py` (`amax_to_scale`), `float8_ops.py` (`addmm_float8_unwrapped`).
    """
    amax = span.double().clamp(min=1e-12)
    encode = torch.div(torch.full_like(amax, fmt.element.max), amax).float()
    if fmt.scale.rounding == "pow2":
        power = torch.ldexp(torch.ones_like(encode), torch.frexp(encode).exponent - 1)
        encode = torch.where(encode > 0, power, encode)
    decode = divide(1.0, encode)
    return Scales(encode=encode, decode=decode, stored=decode)


RULES = {
    "torchao_ptq": torchao_ptq,
    "modelopt": modelopt,
    "quartet2": quartet2,
    "qutlass": qutlass,
    "torchao": torchao,
}


def eden(scaled: Tensor, codes: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Return block scales corrected so that the mean of the decoded values is exact after rotation.

    In each group of EDEN_GROUP elements the scales are multiplied by sum(v²)/sum(v·q), v the scaled
    elements and q their codes, sums in float64; then rounded to E4M3 stochastically. Over random
    rotations the dequantized tensor is unbiased, with less error than stochastic codes have.

    Shapes: scaled and codes [..., M, 1, K/16, 16], scale [..., M, 1, K/16, 1], noise as scale.
    Dtypes: float32; noise int64 of 16 bits -> float32.
    Source: EDEN (arXiv 2108.08842); Quartet-II.
    """
    per = EDEN_GROUP // scaled.shape[-1]  # blocks in a group
    over = (scaled.double().square().sum(-1), (scaled.double() * codes.double()).sum(-1))
    groups = [torch.nn.functional.pad(part, (0, -part.shape[-1] % per)) for part in over]
    square, product = (part.unflatten(-1, (-1, per)).sum(-1) for part in groups)
    ratio = torch.where(product == 0, 1.0, square / product).float()
    ratio = ratio.repeat_interleave(per, -1)[..., : scale.shape[-2]].unsqueeze(-1)
    return round_to(scale * ratio, E4M3, noise, EDEN_ROUNDING)
