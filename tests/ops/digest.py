"""Print which code runs the ops and a hash of what they compute: `python -m tests.ops.digest`."""

import hashlib

import torch

from qgraph import ops
from qgraph.numerics import TE_SIGNS
from tests.numerics.data import kinds

TEXTS = (
    "e2m1/1x16/e4m3/fp32",
    "e2m1/16x16/e4m3/fp32",
    "e4m3/1x32/ue8m0-rceil",
    "e4m3/tensor/fp32",
    "int8/row/fp32",
)


def digest() -> str:
    """Return the hash of every op's bits, on tensors large enough to be shared among threads."""
    found = hashlib.sha256()
    data = kinds(130, 200)
    for kind in ("randn", "rows_exp8"):
        for axis in (-1, -2):
            for seed in (None, torch.tensor([41])):
                for text in TEXTS:
                    x = data[kind]
                    rotated = ops.rotate_quant(x.bfloat16(), TE_SIGNS, "bf16", text, axis, seed, 6)
                    for out in (ops.fake_quant(x, text, axis, seed, 6), rotated.float()):
                        found.update(out.numpy().tobytes())
            found.update(ops.hadamard(data[kind], TE_SIGNS, axis, "fp32").numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(ops.describe_lowering("cpu"))
    print(digest())
