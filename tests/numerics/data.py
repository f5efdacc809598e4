"""Data that separates right arithmetic from wrong, and the comparison by bits."""

import torch
from hypothesis import settings
from torch import Tensor

from qgraph.formats import ELEMENTS

law = settings(deadline=None, derandomize=True)  # for @given: the same examples in every run

# One of each way a scale is chosen, and blocks of every kind: narrow, square, odd, whole rows, whole tensors.
FORMATS = (
    "e2m1/1x16/e4m3/fp32",
    "e2m1/16x16/e4m3/fp32",
    "e4m3/1x16/e4m3/fp32",
    "e2m1/3x7/e4m3/fp32",
    "e4m3/1x32/ue8m0-rceil",
    "e2m1/1x32/ue8m0-rceil",
    "e5m2/1x32/ue8m0-floor",
    "e2m1/1x32/ue8m0-floor",
    "e3m2/8x8/ue8m0-rceil",
    "e2m3/row/ue8m0-floor",
    "int8/1x8/ue8m0-floor",
    "e4m3/tensor/ue8m0-rceil",
    "e5m2/tensor/fp32",
    "e4m3/tensor/fp32",
    "e4m3/row/fp32",
    "int8/row/fp32",
    "int8/tensor/fp32",
    "int4/1x32/fp32",
)
# Every other kind of element, scale, range, rounding of scales and dialect.
OTHER_FORMATS = (
    "e2m1/1x16/e4m3", "e2m1/1x32/ue5m3", "e2m1/1x16/ue5m3-up/fp32", "e2m1/1x16/e4m3:4over6/fp32",
    "e2m1/16x16/e4m3:4over6_mse_448/fp32", "e2m1/1x16/e4m3:mse/fp32", "int8/row/fp32:p99.9",
    "int8/tensor/fp32:p99", "e2m1/1x32/ue8m0-rfloor:std", "e2m1/1x16/e4m3:rms/fp32",
    "e8m3/tensor/none", "bf16/tensor/none", "int8+asymmetric/row/fp32", "int4+asymmetric/1x32/fp32",
    "int8+full/tensor/fp32", "nf4/1x64/fp32", "ternary/row/fp32:mse", "log4/1x32/fp32",
    "power4+a0.5/row/fp32", "int16/tensor/ue8m0-floor", "e3m0/1x32/ue8m0-ceil",
    "e4m3+b8+fnuz/column/fp32-pow2", "int8/row/fp32-pow2", "e2m1/1x16/e4m3/fp32-row",
    "e5m2+overflow/1x32/fp32:fixed3", "e2m1+flush/1x32/ue8m0-even", "ue4m3/1x8/fp32",
    "fixed4.4/tensor/none", "e2m1+b1.5/row/fp32", "int8/row/bf16", "e2m1/1x16/e4m3-stochastic/fp32",
    "binary/row/fp32", "e4m3+b140/tensor/none", "list(-3,-1,0.5,2)/1x8/fp32", "e2m1/1x32/ue5m0-floor",
    "e2m1/1x16/e4m3@torchao_ptq", "e2m1/1x16/e4m3/fp32@torchao_ptq", "e2m1/1x16/e4m3/fp32@modelopt",
    "e2m1/1x16/e4m3:4over6/fp32@quartet2", "e2m1/1x16/e4m3-eden/fp32@quartet2",
    "e2m1/1x16/e4m3@qutlass", "int8/column/fp32", "e3m4/4x8/ue5m3+ieee-down",
    "e4m3/tensor/fp32@torchao", "e5m2/row/fp32-pow2@torchao", "int8/row/fp32:absmax+floor1e-5",
    "int4+asymmetric/1x32/fp32:absmax+floor0.01",
)  # fmt: skip
# Of both, one of each kind: what is asked of every format at some length is asked of these always.
TELLING_FORMATS = (
    "e2m1/1x16/e4m3/fp32", "e2m1/16x16/e4m3/fp32", "e2m1/3x7/e4m3/fp32", "e4m3/1x32/ue8m0-rceil",
    "e4m3/tensor/fp32", "int8/row/fp32", "e2m1/1x16/e4m3:4over6/fp32", "int8/tensor/fp32:p99",
    "e2m1/1x32/ue8m0-rfloor:std", "int4+asymmetric/1x32/fp32", "nf4/1x64/fp32", "log4/1x32/fp32",
    "e5m2+overflow/1x32/fp32:fixed3", "e2m1/1x16/e4m3-stochastic/fp32", "e4m3+b140/tensor/none",
    "e2m1/1x16/e4m3/fp32@modelopt", "e2m1/1x16/e4m3-eden/fp32@quartet2", "int8/column/fp32",
    "e4m3/tensor/fp32@torchao", "int8/row/fp32:absmax+floor1e-5",
)  # fmt: skip
# The elements that `reference.py` and the oracles of two packages know.
PLAIN = tuple(ELEMENTS[name] for name in ("e4m3", "e5m2", "e2m1", "e2m3", "e3m2", "int8", "int4"))
TWO_LEVEL = tuple(f for f in FORMATS if f.endswith("e4m3/fp32"))


def every_exponent() -> Tensor:
    """Return one float32 just under each power of two, 2**-148 to 2**127, and the power itself."""
    powers = torch.tensor([2.0**e for e in range(-148, 128)], dtype=torch.float64).float()
    return torch.cat([torch.nextafter(powers, torch.zeros(())), powers])


def kinds(rows: int = 21, columns: int = 53) -> dict[str, Tensor]:
    """Return float32 matrices by kind; the sizes are ragged for every block in use."""
    generator = torch.Generator().manual_seed(20)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = randn(rows, columns)
    found = {
        "randn": x,
        "rows_exp3": x * torch.exp(3 * randn(rows, 1)),
        "rows_exp8": x * torch.exp(8 * randn(rows, 1)),
        "columns_exp8": x * torch.exp(8 * randn(1, columns)),
        "gradient": x * 1e-5,
        "zero": torch.zeros(rows, columns),
        "zero_block": x.clone(),
        "outlier": x.clone(),
        "denormal": x * 1e-40,
        "huge": x * 2.0**125,
        "negative_zero": torch.where(x > 0.5, x, -0.0),
        "inf": x.clone(),
        "nan": x.clone(),
    }
    found["zero_block"][:17, :33] = 0
    found["outlier"][rows // 2, columns // 3] = 1e30
    found["inf"][rows // 2, columns // 3] = torch.inf
    found["inf"][0, 0] = -torch.inf
    found["nan"][rows // 2, columns // 3] = torch.nan
    # Eighths up to 6: with scales that are powers of two, every rounding midpoint of e2m1.
    eighths = torch.randint(-48, 49, (rows, columns), generator=generator) / 8
    found["midpoints"] = eighths.clamp(-6, 6)
    found["near_midpoints"] = found["midpoints"] + torch.where(x > 0, 1e-3, -1e-3)
    limits = every_exponent()
    spread = torch.rand(rows, columns, generator=generator) * 2 - 1
    tops = limits[torch.arange(rows) * 11 % len(limits)].unsqueeze(-1)
    found["under_power_of_two"] = spread * tops
    found["under_power_of_two"][:, ::5] = tops
    return found


def exact_nvfp4() -> Tensor:
    """Return [32, 64] numbers on 256ths of an e2m1 step whose NVFP4 scales are 1: nothing else rounds.

    Only the block of the tensor's largest magnitude, the first, has a scale of 448.
    """
    generator = torch.Generator().manual_seed(4)
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    below = torch.randint(0, 7, (32, 64), generator=generator)
    k = torch.randint(0, 256, (32, 64), generator=generator)
    x = values[below] + (values[below + 1] - values[below]) * k / 256
    x = torch.where(torch.rand(32, 64, generator=generator) < 0.5, x, -x)
    x[:, ::16] = 6.0
    x[0, 0] = 6.0 * 448
    return x


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float tensors hold the same bits, the sign of zero included; NaN equals NaN."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    same = a.contiguous().view(bits) == b.contiguous().view(bits)
    return bool((same | (a.isnan() & b.isnan())).all())
