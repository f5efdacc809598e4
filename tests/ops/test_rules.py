"""torch's rules for custom ops, and that fake kernels tell the truth about shapes, dtypes and strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qgraph import numerics, ops
from qgraph.compat.fake import FakeTensorMode
from qgraph.errors import FormatError, ShapeError
from qgraph.formats import parse_format
from qgraph.numerics import TE_SIGNS, Noise
from tests.numerics.data import FORMATS, law, same_bits

SEED = torch.tensor([17])
SOME = ("e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "int8/row/fp32", "e4m3/tensor/fp32")
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 8, 15, 16, 17, 33]), min_size=2, max_size=4)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(21)).to(dtype)


INPUTS = {
    "contiguous": randn(5, 37),
    "bf16": randn(3, 20, 33, dtype=torch.bfloat16),
    "transposed": randn(37, 20).mT,
    "strided": randn(10, 40)[::2, ::3],
    "empty": randn(0, 16),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("text", SOME)
def test_quantizing_ops_obey_torchs_rules(kind: str, text: str) -> None:
    x = INPUTS[kind]
    before = x.clone()
    torch.library.opcheck(ops.fake_quant, (x, text, -1, SEED, 3))
    torch.library.opcheck(ops.rotate_quant, (x, TE_SIGNS, "bf16", text, -2, SEED, 3))
    torch.library.opcheck(ops.quantize, (x, text, -2))
    assert same_bits(x, before)


@pytest.mark.parametrize("kind", INPUTS)
def test_the_rotation_obeys_torchs_rules(kind: str) -> None:
    x = INPUTS[kind]
    before = x.clone()
    for axis in (-1, -2):
        torch.library.opcheck(ops.hadamard, (x, TE_SIGNS, axis, "bf16"))
    assert same_bits(x, before)


@pytest.mark.parametrize("text", SOME)
@pytest.mark.parametrize("axis", [-1, -2])
def test_dequantize_obeys_torchs_rules(text: str, axis: int) -> None:
    for x in INPUTS.values():
        stored = ops.quantize(x, text, axis)
        args = (*stored, text, list(x.shape), axis, x.dtype)
        # torch's schema check multiplies every input, which float8_e4m3fn scales cannot do.
        checks = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        checks += [] if "/e4m3" in text else ["test_schema"]
        torch.library.opcheck(ops.dequantize, args, test_utils=checks)
        assert torch.equal(ops.dequantize(*args), ops.fake_quant(x, text, axis))


def test_the_seed_obeys_torchs_rules() -> None:
    # Two runs draw twice, so the checks that compare values between runs do not apply.
    torch.library.opcheck(ops.seed, (), test_utils=("test_schema", "test_faketensor"))
    assert torch.Tag.nondeterministic_seeded in ops.seed.tags


def test_the_seed_comes_from_torchs_generator() -> None:
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(1)
        first = [int(ops.seed()) for _ in range(64)]
        torch.manual_seed(1)
        assert [int(ops.seed()) for _ in range(64)] == first
    finally:
        torch.random.set_rng_state(state)
    assert len(set(first)) == 64
    assert all(0 <= value < 2**32 for value in first)
    assert max(first) >= 2**31


@pytest.mark.parametrize(
    "op", [ops.hadamard, ops.fake_quant, ops.rotate_quant, ops.quantize, ops.dequantize]
)
def test_everything_but_the_seed_is_a_pure_function(op: torch._ops.OpOverload) -> None:
    assert torch.Tag.nondeterministic_seeded not in op.tags
    assert not op._schema.is_mutable


def used_strides(t: Tensor) -> list[int]:
    """Return the strides that matter: none in an empty tensor, none on an axis of size 1."""
    return [step for step, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()]


def facts(*tensors: Tensor) -> list[object]:
    return [(tuple(t.shape), t.dtype, used_strides(t)) for t in tensors]


@pytest.mark.parametrize("text", FORMATS)
@settings(law, max_examples=10)
@given(shape=shapes, dtype=dtypes, axis=st.sampled_from([-1, -2]), turned=st.booleans())
def test_fake_kernels_tell_the_truth(
    text: str, *, shape: list[int], dtype: torch.dtype, axis: int, turned: bool
) -> None:
    x = torch.ones(shape, dtype=dtype)
    x = x.mT if turned else x
    real = ops.quantize(x, text, axis)
    back = (text, list(x.shape), axis, dtype)
    want = facts(
        *real,
        ops.fake_quant(x, text, axis),
        ops.hadamard(x, TE_SIGNS, axis, "bf16"),
        ops.rotate_quant(x, "++-+", "bf16", text, axis),
        ops.dequantize(*real, *back),
    )
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        stored = ops.quantize(fake, text, axis)
        found = facts(
            *stored,
            ops.fake_quant(fake, text, axis),
            ops.hadamard(fake, TE_SIGNS, axis, "bf16"),
            ops.rotate_quant(fake, "++-+", "bf16", text, axis),
            ops.dequantize(*stored, *back),
        )
    assert found == want


def test_a_seed_of_none_rounds_to_nearest_and_a_seed_stochastically() -> None:
    x, text = INPUTS["contiguous"], "e2m1/1x16/e4m3/fp32"
    fmt = parse_format(text)
    assert same_bits(ops.fake_quant(x, text, -1), numerics.fake_quant(x, fmt, -1))
    want = numerics.fake_quant(x, fmt, -1, Noise(seed=17, site=3))
    assert same_bits(ops.fake_quant(x, text, -1, SEED, 3), want)
    assert not torch.equal(ops.fake_quant(x, text, -1, SEED, 4), want)
    stored = ops.quantize(x, text, -1, SEED, 3)
    assert torch.equal(ops.dequantize(*stored, text, list(x.shape), -1, x.dtype), want)


@pytest.mark.parametrize("shape", [(16,), (2, 3, 16)])
@pytest.mark.parametrize("op", [ops.fake_quant, ops.quantize], ids=["fake_quant", "quantize"])
def test_an_axis_that_is_not_one_of_the_last_two_is_refused(
    shape: tuple[int, ...], op: torch._ops.OpOverload
) -> None:
    with pytest.raises(ShapeError) as caught:
        op(torch.ones(shape), "e2m1/1x16/e4m3/fp32", 0)
    want = f"quantization runs along one of the last two axes, not axis 0 of {len(shape)}"
    assert str(caught.value) == want


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(FormatError, match="unknown format 'nvfp5'"):
        ops.fake_quant(torch.ones(2, 16), "nvfp5", -1)


def test_devices_without_kernels_say_so() -> None:
    assert ops.describe_lowering("xpu") == "reference (no xpu kernels yet)"
    assert ops.describe_lowering("cuda").startswith(("triton kernels for ", "reference ("))
