"""The block Hadamard rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qgraph.numerics.noise import philox_words

# Signs of the 16-point rotation, one for all layers and runs.
# Source: Transformer Engine 2, `transformer_engine/pytorch/tensor/nvfp4_tensor.py`.
TE_SIGNS = "+++-+------+-+--"


def random_signs(count: int, seed: int, site: int) -> str:
    """Return `count` signs as text, from the lowest bits of Philox words keyed by (seed, site)."""
    words = (
        word for counter in range(-(-count // 4)) for word in philox_words(counter, seed, site)
    )
    return "".join("-" if word & 1 else "+" for word in words)[:count]


def hadamard(x: Tensor, signs: str, axis: int, output: str) -> Tensor:
    """Rotate each chunk of n = len(signs) elements along `axis`: chunk · diag(signs) · H / sqrt(n).

    H is the Sylvester matrix. A ragged last chunk is padded with zeros, so the axis grows
    to a multiple of n. The sum runs as a butterfly, distances 1, 2, 4, ..., in float32: with
    rounding to bfloat16 the order can matter. The matrix is orthogonal, so rotating both
    operands of a product along the axis it sums over leaves the product unchanged.

    Shapes: x [..., K, ...] -> [..., n·ceil(K/n), ...].
    Dtypes: float32 or bfloat16 -> the same; `output` is `bf16` (values rounded to bfloat16) or
    `fp32` (left as they are).
    Source: Pretraining LLMs with NVFP4 (arXiv 2509.25149), appendix C; Transformer Engine 2.
    """
    n = len(signs)
    rows = x.float().movedim(axis, -1)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % n))
    chunks = rows.unflatten(-1, (-1, n))
    chunks = chunks * torch.tensor([1.0 if s == "+" else -1.0 for s in signs], device=x.device)
    distance = 1
    while distance < n:
        pairs = chunks.unflatten(-1, (n // (2 * distance), 2, distance))
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        chunks = torch.stack([low + high, low - high], -2).flatten(-3, -1)
        distance *= 2
    rotated: Tensor = (chunks * torch.tensor(1 / math.sqrt(n), dtype=torch.float32)).flatten(-2, -1)
    if output == "bf16":
        rotated = rotated.to(torch.bfloat16)
    return rotated.movedim(-1, axis).to(x.dtype).contiguous()
