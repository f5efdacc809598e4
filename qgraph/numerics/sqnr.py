"""How far a quantized tensor is from the tensor, as one number."""

from __future__ import annotations

import math


def sqnr_db(power: float, noise: float) -> float:
    """Return the signal to quantization noise ratio, 10 log10(power / noise), in dB.

    `power` is the sum of x², `noise` that of the error's square. Infinite without an error, minus
    infinity where there is nothing but an error.
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf
