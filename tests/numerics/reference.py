"""The rules of block quantization once more, in numpy and block by block: nothing here comes from qgraph.

Source: OCP MX 1.0, 5.3 and 6.3; Transformer Engine `core_nvfp4.cuh` and `compute_scale_from_amax`.
"""

import bisect
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int64]
F32 = np.float32
FLT_MAX = np.finfo(np.float32).max
POWERS = [2.0**e for e in range(-127, 128)]  # of the E8M0 bytes 0 to 254

DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}
TOP_EXPONENTS = {"e4m3": 8, "e5m2": 15, "e2m1": 2, "e2m3": 2, "e3m2": 4, "int8": 6, "int4": 2}


def grid(element: str) -> npt.NDArray[np.float64]:
    """Return the finite values of an element from 0 up: position n is code n."""
    if element.startswith("int"):
        return np.arange(2 ** (int(element[3:]) - 1), dtype=np.float64)
    bits = 1 + int(element[1]) + int(element[3])
    codes = np.arange(2 ** (bits - 1), dtype=np.uint8).view(DTYPES[element])
    values: npt.NDArray[np.float64] = codes.astype(np.float64)
    return values[np.isfinite(values)]


def to_grid(x: Floats, element: str, noise: Bytes | None = None) -> Floats:
    """Round to the grid by looking the neighbors up: nearest, ties to the even code, or stochastic."""
    values, size = grid(element), np.abs(x.astype(np.float64))
    size = np.minimum(size, values[-1])
    if noise is None:
        middles = (values[1:] + values[:-1]) / 2
        index = np.searchsorted(middles, size)  # middles[index - 1] < size <= middles[index]
        tie = size == np.append(middles, np.inf)[np.minimum(index, len(middles))]
        index = index + (tie & (index % 2 == 1))
    else:
        below = np.minimum(np.searchsorted(values, size, side="right") - 1, len(values) - 2)
        step = values[below + 1] - values[below]
        # The sum is one of float32 numbers, counted in steps: size/step + noise/256.
        total = (size / step).astype(np.float32) + noise.astype(np.float32) / F32(256)
        index = below + (total >= (values[below] / step + 1))
    rounded = values[np.minimum(index, len(values) - 1)]
    rounded = np.where(np.isnan(x), np.nan, rounded)
    return np.copysign(rounded.astype(np.float32), x)


@dataclass(frozen=True, kw_only=True)
class Tensorwide:
    encode: np.float32
    decode: np.float32


def tensorwide(amax: np.float32, element: str) -> Tensorwide:
    bound = F32(grid(element)[-1] * 448)
    encode = np.minimum(bound / amax, FLT_MAX)
    if amax == 0 or encode == 0:
        encode = F32(1)
    return Tensorwide(encode=encode, decode=amax / bound)


def block_values(
    x: Floats,
    amax: np.float32,
    element: str,
    scale: str,
    whole: Tensorwide | None,
    noise: Bytes | None,
) -> Floats:
    """Quantize and dequantize one block that shares a scale."""
    top = F32(grid(element)[-1])
    if whole is not None:
        wanted = np.minimum(amax * (whole.encode * (F32(1) / top)), F32(448))
        stored = np.asarray(wanted).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        encode = np.minimum(F32(1) / (stored * (F32(1) / whole.encode)), FLT_MAX)
        return (to_grid(x * encode, element, noise) * stored) * whole.decode
    if scale == "fp32":
        if element.startswith("int"):
            divisor = F32(1) if amax / top == 0 else amax / top
            return to_grid(x / divisor, element, noise) * divisor
        unusable = amax == 0 or np.isinf(amax)
        factor = F32(1) if unusable else np.minimum(top / amax, FLT_MAX)
        worth = F32(np.nan) if np.isinf(amax) else F32(1) / factor  # an infinity must show
        return to_grid(x * factor, element, noise) * worth
    power = F32(np.nan)
    if np.isfinite(amax):
        if scale == "ue8m0-rceil":
            byte = bisect.bisect_left(POWERS, float(amax * (F32(1) / top)))  # smallest at or above
        else:
            byte = bisect.bisect_right(POWERS, float(amax) / 2.0 ** TOP_EXPONENTS[element]) - 1
        power = F32(POWERS[max(byte, 0)])
    return to_grid(x / power, element, noise) * power


def fake_quant(x: Floats, text: str, axis: int, noise: Bytes | None = None) -> Floats:
    """Quantize and dequantize `x` [M, K] or [B, M, K] in the format that `text` names."""
    element, block, scale, *rest = text.split("/")
    with np.errstate(all="ignore"):
        amax = F32(np.max(np.abs(x), initial=0))
        whole = tensorwide(amax, element) if rest else None
        out = np.empty_like(x)
        matrices, results = x.reshape(-1, *x.shape[-2:]), out.reshape(-1, *x.shape[-2:])
        noises = None if noise is None else noise.reshape(matrices.shape)
        for number, (matrix, result) in enumerate(zip(matrices, results, strict=True)):
            size, width = matrix.shape if axis in (-1, x.ndim - 1) else matrix.shape[::-1]
            sides = {"tensor": (size, width), "row": (1, width)}.get(block)
            across, along = sides or [int(side) for side in block.split("x")]
            for i in range(0, size, max(across, 1)):
                for j in range(0, width, max(along, 1)):
                    where = (slice(i, i + across), slice(j, j + along))
                    where = where if axis in (-1, x.ndim - 1) else where[::-1]
                    part = matrix[where]
                    top = amax if block == "tensor" else F32(np.max(np.abs(part)))
                    bits = None if noises is None else noises[number][where]
                    result[where] = block_values(part, top, element, scale, whole, bits)
    return out
