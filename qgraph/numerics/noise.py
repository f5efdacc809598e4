"""Random bits for stochastic rounding, from a counter: the same on every device and thread count."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, seed: int, site: int) -> Tensor:
    """Return the four 32-bit words of Philox4x32-10 for each counter value.

    The counter is (low word, high word, 0, 0), the key is (seed, site).

    Shapes: counter [...] -> [..., 4].
    Dtypes: int64 in, int64 out, values 0 to 2**32 - 1.
    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
    """
    words = [counter & _MASK, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)]
    keys = [seed & _MASK, site & _MASK]
    for _ in range(10):
        # A product of two 32-bit words wraps in int64; shifting and masking still gives its halves.
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            ((second >> 32) & _MASK) ^ words[1] ^ keys[0],
            second & _MASK,
            ((first >> 32) & _MASK) ^ words[3] ^ keys[1],
            first & _MASK,
        ]
        keys = [(key + weyl) & _MASK for key, weyl in zip(keys, _WEYL, strict=True)]
    return torch.stack(words, -1)


def philox_words(counter: int, seed: int, site: int) -> tuple[int, int, int, int]:
    """Return the words `philox` gives for one counter value, without a tensor."""
    a, b, c, d = counter & _MASK, counter >> 32, 0, 0
    keys = [seed & _MASK, site & _MASK]
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32) ^ b ^ keys[0],
            second & _MASK,
            (first >> 32) ^ d ^ keys[1],
            first & _MASK,
        )
        keys = [(key + weyl) & _MASK for key, weyl in zip(keys, _WEYL, strict=True)]
    return a, b, c, d


def random_bits(
    shape: torch.Size, axis: int, seed: int, site: int, device: torch.device, bits: int = 8
) -> Tensor:
    """Return `bits` random bits for each element of a tensor of `shape`.

    Each element takes a byte, two for more than 8 bits, or four for more than 16, and keeps its highest
    bits. With
    `axis` moved last, each row is cut into chunks of 16 bytes; chunk number c, counted row by row,
    reads the bytes of counter c, the low ones of the first word first.

    Shapes: -> `shape`.
    Dtypes: int64, values 0 to 2**bits - 1.
    """
    width = 8 if bits <= 8 else 16 if bits <= 16 else 32
    served = 128 // width  # elements a counter value serves
    rows = torch.empty(shape, device="meta").movedim(axis, -1).shape
    size = rows[-1]
    chunks = -(-size // served)
    count = rows[:-1].numel() * chunks
    words = philox(torch.arange(count, device=device), seed, site)  # [count, 4]
    shifts = torch.arange(0, 32, width, device=device)
    fields = (words[..., None] >> shifts) & ((1 << width) - 1)  # [count, 4, 32 / width]
    drawn = fields >> (width - bits)
    return drawn.reshape(*rows[:-1], chunks * served)[..., :size].movedim(-1, axis)
