"""Make `vectors.npz` again: its inputs, and what other libraries' quantizers make of them.

python -m tests.numerics.make_vectors [FILE.npz]

The codes and scales were first written by the originals: Transformer Engine's NVFP4 reference
(d0067d0d), torchao (36027d82) and ModelOpt (a2fbac7b), on a CPU. They are no packages that a test can
ask for, so their rules stand here once more, in numpy, in the order in which they round; nothing here
comes from qgraph. A test holds that this gives the file again, bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from tests.numerics.reference import DTYPES, F32, FLT_MAX, POWERS, TOP_EXPONENTS, Floats, grid

Codes = npt.NDArray[np.uint8]
Rule = Callable[[Floats, str, str], tuple[Codes, Codes]]  # x, element, mode -> codes, scale bytes

FILE = Path(__file__).with_name("vectors.npz")
ROWS, COLUMNS, SEED = 16, 64, 1234
NAN = {"e4m3": 127, "ue8m0": 255}
SIX, E4M3_MAX = F32(6), F32(448)
MANTISSA_BITS = {"e4m3": 3, "e5m2": 2, "e2m1": 1}


def inputs() -> dict[str, Floats]:
    """Return [16, 64] matrices by kind, each of which separates some rule from another."""
    generator = torch.Generator().manual_seed(SEED)

    def randn(columns: int = COLUMNS) -> torch.Tensor:
        return torch.randn(ROWS, columns, generator=generator)

    found = {"randn": randn()}
    found["rows_exp3"] = randn() * torch.exp(3 * randn(1))
    found["rows_exp8"] = randn() * torch.exp(8 * randn(1))
    found["randn_1e-5"] = randn() * 1e-5
    found["zeros"] = torch.zeros(ROWS, COLUMNS)
    found["zero_block"] = randn()
    found["zero_block"][3, 16:48] = 0
    found["outlier_1e30"] = randn()
    found["outlier_1e30"][5, 7] = 1e30
    found["denormals"] = randn() * 1e-40
    found["huge"] = randn() * 2.0**125
    found["with_inf"] = randn()
    found["with_inf"][2, 5], found["with_inf"][9, 40] = torch.inf, -torch.inf
    found["with_nan"] = randn()
    found["with_nan"][4, 20] = torch.nan
    # All midpoints of e2m1 and its largest value, at sixteen powers of two.
    points = torch.tensor([0.25, -0.75, 1.25, -1.75, 2.5, -3.5, 5.0, -6.0]).repeat(COLUMNS // 8)
    found["midpoints"] = points * 2.0 ** torch.arange(-8, ROWS - 8)[:, None]
    powers = torch.tensor([[2.0 ** (16 * row - 126)] for row in range(ROWS)])
    tops = torch.nextafter(powers, torch.zeros(()))
    found["ulp_under_pow2"] = randn().abs().clamp(max=1) * tops / 2
    found["ulp_under_pow2"][:, ::16] = tops
    found["neg_zero_small"] = randn() * 1e-3
    found["neg_zero_small"][0, :8] = -0.0
    return {kind: x.numpy() for kind, x in found.items()}


def encode(values: Floats, element: str) -> Codes:
    """Return the codes of an element nearest to `values`, saturating, ties to the even code."""
    top = F32(grid(element)[-1])
    codes: Codes = np.clip(values, -top, top).astype(DTYPES[element]).view(np.uint8)
    return np.where(np.isnan(values) & (element == "e2m1"), np.uint8(0), codes)


def decode(codes: Codes, element: str) -> Floats:
    """Return what codes are worth."""
    values: Floats = codes.view(DTYPES[element]).astype(np.float32)
    return values


def to_e4m3(values: Floats) -> Codes:
    """Return the E4M3 bytes nearest to `values`, which are scales: no code is above 448."""
    return np.minimum(values, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def blocks_of(x: Floats, across: int, along: int) -> Floats:
    """Return x as [rows of blocks, across, columns of blocks, along]."""
    return x.reshape(ROWS // across, across, COLUMNS // along, along)


def largest(blocks: Floats) -> Floats:
    """Return the largest magnitude of each block, NaN if one is in it: [rows, 1, columns, 1]."""
    found: Floats = np.max(np.abs(blocks), axis=(1, 3), keepdims=True)
    return found


def transformer_engine(x: Floats, block: str, mode: str) -> tuple[Codes, Codes]:
    """NVFP4 of two levels; `mode` is the choice of a block's range, and `row` for a scale a row."""
    across, along = (int(side) for side in block.split("x"))
    blocks = blocks_of(x, across, along)
    span = largest(blocks)
    whole = largest(blocks_of(x, *((1, COLUMNS) if mode.endswith("row") else x.shape)))
    top = F32(256) if mode.startswith("4over6") and "448" not in mode else E4M3_MAX
    factor = np.minimum(top * SIX / whole, FLT_MAX)
    factor = np.where(factor == 0, F32(1), factor).astype(np.float32)
    if not mode.startswith("4over6"):
        bytes_ = to_e4m3(np.minimum(span * (factor * (F32(1) / SIX)), FLT_MAX))
        return _scaled(blocks, bytes_, factor), bytes_
    tries = []
    for share in (F32(1), F32(1.5)):
        bytes_ = to_e4m3(span / SIX * factor * share)
        codes = _scaled(blocks, bytes_, factor)
        values = decode(codes, "e2m1") * decode(bytes_, "e4m3") * whole / (SIX * top)
        tries.append((codes, bytes_, _summed(values - blocks, squared="mse" in mode)))
    (six, six_bytes, six_error), (four, four_bytes, four_error) = tries
    better = four_error < six_error  # a tie, or NaN, goes to six
    return np.where(better, four, six), np.where(better, four_bytes, six_bytes)


def _scaled(blocks: Floats, bytes_: Codes, factor: Floats) -> Codes:
    scale = decode(bytes_, "e4m3") * (F32(1) / factor)
    return encode(blocks * np.minimum(F32(1) / scale, FLT_MAX), "e2m1")


def _summed(difference: Floats, *, squared: bool) -> Floats:
    """Return the error of each block: along a row one by one, then the halves of rows onto halves."""
    error = difference * difference if squared else np.abs(difference)
    total = np.zeros_like(error[..., 0])
    for column in range(error.shape[-1]):
        total = total + error[..., column]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[..., None]


def torchao(x: Floats, block: str, mode: str) -> tuple[Codes, Codes]:
    """NVFP4 for inference, of one level or (`fp32`) of two; scales are 2**-6 at least.

    Of subnormal numbers the factor is infinite with two levels, and 0 times it NaN, for which e2m1 has
    no code: the file has code 0 for all elements of such a block.
    """
    blocks = blocks_of(x, 1, 16)
    wanted = largest(blocks) / SIX
    one = np.ones((1, 1, 1, 1), np.float32)
    whole = largest(blocks_of(x, *x.shape)) / (E4M3_MAX * SIX) if mode == "fp32" else one
    bytes_ = to_e4m3(np.clip(wanted / whole, F32(2.0**-6), E4M3_MAX))
    factor = F32(1) / whole / decode(bytes_, "e4m3")
    return np.where(np.isfinite(factor), encode(blocks * factor, "e2m1"), np.uint8(0)), bytes_


def modelopt(x: Floats, block: str, mode: str) -> tuple[Codes, Codes]:
    """NVFP4 of two levels; scales are 2**-9 at least, and 1 where they would be 0."""
    blocks = blocks_of(x, 1, 16)
    whole = largest(blocks_of(x, *x.shape)) / (E4M3_MAX * SIX)
    ratio = largest(blocks) / (SIX * whole)
    bytes_ = to_e4m3(np.clip(np.where(ratio == 0, F32(1), ratio), F32(2.0**-9), E4M3_MAX))
    scale: Floats = decode(bytes_, "e4m3") * whole
    return encode(blocks / scale, "e2m1"), bytes_


def microscaling(x: Floats, element: str, mode: str) -> tuple[Codes, Codes]:
    """MX casts: blocks of 32 with a power of two, chosen in one of four ways."""
    blocks = blocks_of(x, 1, 32)
    span = largest(blocks)
    finite = np.isfinite(span)
    powers = np.array(POWERS, np.float32)
    if mode == "rceil":
        ratio = (span * (F32(1) / F32(grid(element)[-1]))).astype(np.float64)
    else:
        if mode == "even":  # the mantissa is rounded to the element's bits, half up
            half = np.int32(1 << (22 - MANTISSA_BITS[element]))
            span = (span.view(np.int32) + half).view(np.float32)
        ratio = span.astype(np.float64) / 2.0 ** TOP_EXPONENTS[element]
    if mode in ("rceil", "ceil"):
        found = np.searchsorted(powers, ratio, side="left")
    else:
        found = np.searchsorted(powers, ratio, side="right") - 1
    found = np.clip(found, 0, 254)
    bytes_ = np.where(finite, found, NAN["ue8m0"]).astype(np.uint8)
    return encode(blocks / powers[found], element), bytes_


# The text of a format in the file, the rule that makes it, and what the rule takes.
FORMATS: dict[str, tuple[Rule, str, str]] = {
    "e2m1/16x16/e4m3/fp32": (transformer_engine, "16x16", "absmax"),
    "e2m1/16x16/e4m3:4over6/fp32": (transformer_engine, "16x16", "4over6"),
    "e2m1/1x16/e4m3/fp32": (transformer_engine, "1x16", "absmax"),
    "e2m1/1x16/e4m3/fp32-row": (transformer_engine, "1x16", "row"),
    "e2m1/1x16/e4m3/fp32@modelopt": (modelopt, "1x16", "fp32"),
    "e2m1/1x16/e4m3/fp32@torchao_ptq": (torchao, "1x16", "fp32"),
    "e2m1/1x16/e4m3:4over6/fp32": (transformer_engine, "1x16", "4over6"),
    "e2m1/1x16/e4m3:4over6_mse/fp32-row": (transformer_engine, "1x16", "4over6_mse_row"),
    "e2m1/1x16/e4m3:4over6_mse_448/fp32": (transformer_engine, "1x16", "4over6_mse_448"),
    "e2m1/1x16/e4m3@torchao_ptq": (torchao, "1x16", "none"),
} | {
    f"{element}/1x32/ue8m0-{mode}": (microscaling, element, mode)
    for element in ("e2m1", "e4m3", "e5m2")
    for mode in ("ceil", "even", "floor", "rceil")
}  # fmt: skip
# Of these the originals' own casts of elements are asked; of the other casts to 8 bits only scales.
WITH_CODES = ("e4m3/1x32/ue8m0-floor", "e4m3/1x32/ue8m0-rceil")


def canonical(text: str, codes: Codes, bytes_: Codes) -> tuple[Codes, Codes]:
    """Return codes and scales as the file has them: of what originals differ in, one form.

    NaN scales are one byte, codes of their blocks 0; so are 4-bit codes of -0. Two 4-bit codes are in
    a byte, the first in its low half.
    """
    element, kind = text.split("/")[0], "ue8m0" if "ue8m0" in text else "e4m3"
    lost = bytes_ == 255 if kind == "ue8m0" else (bytes_ & 127) == 127
    codes = np.where(lost, np.uint8(0), codes).reshape(ROWS, COLUMNS)
    scales = np.where(lost, np.uint8(NAN[kind]), bytes_).reshape(bytes_.shape[0], bytes_.shape[2])
    if element == "e2m1":
        codes = np.where((codes & 7) == 0, np.uint8(0), codes)
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return codes, scales


def make(kinds: dict[str, Floats]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of the file: the inputs, and for each format codes and scales.

    The first axis of these has the inputs in float32 and then in bfloat16.
    """
    xs = [*kinds.values()]
    xs += [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in xs]
    found: dict[str, npt.NDArray[np.generic]] = {
        "kinds": np.array([*kinds]),
        "x": np.stack([*kinds.values()]),
    }
    with np.errstate(all="ignore"):
        for text, (rule, first, second) in sorted(FORMATS.items()):
            made = [canonical(text, *rule(x, first, second)) for x in xs]
            if text.startswith("e2m1") or text in WITH_CODES:
                found[f"{text}|codes"] = np.stack([codes for codes, _ in made])
            found[f"{text}|scales"] = np.stack([scales for _, scales in made])
    return found


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1] if len(sys.argv) > 1 else FILE, **make(inputs()))  # type: ignore[arg-type]
