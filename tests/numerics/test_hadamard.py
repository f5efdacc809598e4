"""The block rotation: against the matrix in float64, its inverse, and what it preserves."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qgraph.numerics import TE_SIGNS, hadamard
from tests.numerics.data import kinds, same_bits

SIGNS = {
    "te": TE_SIGNS,
    "plain16": "+" * 16,
    "four": "++-+",
    "two": "-+",
    "one": "+",
    "long": "+--+" * 16,
}
U = 2.0**-24  # relative error of one float32 operation
each_sign = pytest.mark.parametrize("signs", SIGNS.values(), ids=list(SIGNS))


def matrix(signs: str) -> Tensor:
    """Return diag(signs)·H/sqrt(n), where H[i, j] = (-1)**(number of bits i and j share)."""
    n = len(signs)
    h = [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    d = torch.tensor([1.0 if s == "+" else -1.0 for s in signs], dtype=torch.float64)
    return d.unsqueeze(-1).mul(torch.tensor(h, dtype=torch.float64)).div(n**0.5)


def exact(x: Tensor, signs: str) -> Tensor:
    """Rotate along the last axis, in float64."""
    n = len(signs)
    padded = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % n))
    rotated: Tensor = torch.matmul(padded.unflatten(-1, (-1, n)), matrix(signs)).flatten(-2)
    return rotated


def bound(x: Tensor, signs: str) -> Tensor:
    """Return the largest error of a butterfly: log2(n) additions, the factor's rounding, a product."""
    n = len(signs)
    padded = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % n)).unflatten(-1, (-1, n))
    total = padded.abs().sum(-1, keepdim=True).expand_as(padded).flatten(-2) / n**0.5
    factor = (1 + U) ** (np.log2(n) + 2) - 1
    limit: Tensor = total * factor + 2.0**-149  # a result may be subnormal
    return limit


def random(*shape: int, seed: int = 12) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_signs_of_transformer_engine() -> None:
    assert " ".join(TE_SIGNS).replace("-", "−") == "+ + + − + − − − − − − + − + − −"


@each_sign
@pytest.mark.parametrize(
    "kind", ["randn", "rows_exp8", "columns_exp8", "gradient", "outlier", "denormal"]
)
def test_equals_the_matrix_product_within_the_rounding_of_its_sums(signs: str, kind: str) -> None:
    x = kinds()[kind]
    error = (hadamard(x, signs, -1, "fp32").double() - exact(x, signs)).abs()
    assert bool((error <= bound(x, signs)).all())


@each_sign
def test_is_exact_where_the_sums_are(signs: str) -> None:
    x = torch.randint(-50, 50, (9, 64), generator=torch.Generator().manual_seed(13)).float()
    found = hadamard(x, signs, -1, "fp32")
    want = exact(x, signs)
    if len(signs) in (1, 4, 16, 64):  # the root is a power of two
        assert torch.equal(found.double(), want)
    else:
        # The sum is exact; the factor's rounding and the product's remain.
        assert bool(((found.double() - want).abs() <= want.abs() * 2.001 * U).all())


@each_sign
def test_is_its_own_inverse_up_to_the_signs(signs: str) -> None:
    x = torch.randint(-50, 50, (9, 64), generator=torch.Generator().manual_seed(14)).float()
    back = hadamard(hadamard(x, signs, -1, "fp32"), "+" * len(signs), -1, "fp32")
    d = torch.tensor([1.0 if s == "+" else -1.0 for s in signs]).repeat(64 // len(signs))
    if len(signs) in (1, 4, 16, 64):
        assert torch.equal(back * d, x)
    else:
        assert torch.equal((back * d).round(), x)


def test_rotating_both_operands_leaves_their_product() -> None:
    a = torch.randint(-20, 20, (8, 64), generator=torch.Generator().manual_seed(15)).float()
    b = torch.randint(-20, 20, (64, 8), generator=torch.Generator().manual_seed(16)).float()
    product = hadamard(a, TE_SIGNS, -1, "fp32") @ hadamard(b, TE_SIGNS, -2, "fp32")
    assert torch.equal(product, a @ b)  # quarters of small integers: every sum is exact
    assert not torch.equal(hadamard(a, TE_SIGNS, -1, "fp32"), a)


def test_rotating_both_operands_of_a_ragged_product_leaves_it_too() -> None:
    a = torch.randint(-20, 20, (8, 37), generator=torch.Generator().manual_seed(17)).float()
    b = torch.randint(-20, 20, (37, 8), generator=torch.Generator().manual_seed(18)).float()
    rotated = hadamard(a, TE_SIGNS, -1, "fp32"), hadamard(b, TE_SIGNS, -2, "fp32")
    assert [t.shape for t in rotated] == [(8, 48), (48, 8)]
    assert torch.equal(rotated[0] @ rotated[1], a @ b)


def test_an_outlier_is_spread_over_its_chunk() -> None:
    x = torch.zeros(1, 48)
    x[0, 20] = 64.0
    rotated = hadamard(x, TE_SIGNS, -1, "fp32")
    assert rotated.abs().tolist() == [[0.0] * 16 + [16.0] * 16 + [0.0] * 16]


@each_sign
@pytest.mark.parametrize("kind", ["randn", "rows_exp8", "outlier", "gradient", "inf", "nan"])
def test_bf16_rounding_happens_once_at_the_end(signs: str, kind: str) -> None:
    x = kinds()[kind]
    full = hadamard(x, signs, -1, "fp32")
    assert same_bits(hadamard(x, signs, -1, "bf16"), full.bfloat16().float())


def test_bf16_in_gives_bf16_out_and_computes_in_float32() -> None:
    x = random(5, 48).bfloat16()
    for rounding in ("bf16", "fp32"):
        found = hadamard(x, TE_SIGNS, -1, rounding)
        assert same_bits(found, hadamard(x.float(), TE_SIGNS, -1, "fp32").bfloat16())


@each_sign
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 5, 37), (1, 16), (2, 64)])
def test_a_ragged_axis_is_padded_with_zeros(signs: str, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    n = len(signs)
    for axis in range(-len(shape), 0):
        found = hadamard(x, signs, axis, "fp32")
        size = -(-shape[axis] // n) * n
        assert found.shape[axis] == size
        rows = x.movedim(axis, -1)
        padded = torch.nn.functional.pad(rows, (0, size - shape[axis]))
        want = hadamard(padded.contiguous(), signs, -1, "fp32").movedim(-1, axis)
        assert torch.equal(found, want)
        assert found.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (2, 0, 3)])
def test_empty_tensors_stay_empty(shape: tuple[int, ...]) -> None:
    assert hadamard(torch.zeros(shape), TE_SIGNS, -1, "bf16").numel() == 0


def test_the_butterfly_adds_nearest_neighbors_first() -> None:
    # 1 + (2**24 + 1) keeps what (1 + 2**24) + 1 loses, so the order of the sum shows.
    x = torch.zeros(1, 4)
    x[0] = torch.tensor([2.0**24, 1.0, 1.0, 1.0])
    f = np.float32
    want = f(f(f(2**24) + f(1)) + f(f(1) + f(1))) * f(0.5)
    assert float(hadamard(x, "++++", -1, "fp32")[0, 0]) == float(want)
    assert float(want) == 2.0**23 + 1.0
