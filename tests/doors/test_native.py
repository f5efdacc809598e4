"""The target `native`: products on codes, with the codes and scales of emulation."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph import numerics, ops
from qgraph.compat import aten
from qgraph.compat.fake import FakeTensorMode
from qgraph.errors import ModelError
from qgraph.formats import parse_format
from qgraph.numerics.storage import as_torch, unswizzle
from qgraph.ops import (
    MAX_SUMMED,
    Machine,
    Quantize,
    at_hand,
    choose,
    find_device,
    forget_machines,
)
from qgraph.ops.cpu import build
from qgraph.ops.cpu.codes import codes_of_matrix
from qgraph.ops.native.scaled import RECIPES, laid_out
from qgraph.passes import report_text
from qgraph.passes.step import Target
from qgraph.policy import load_policy_text
from qgraph.predict.offline.standin import standing_in
from qgraph.tools.timing import alternate, over
from tests.doors.mlp import MLP
from tests.doors.models import one_block
from tests.doors.reference import take_step
from tests.numerics.data import kinds, same_bits
from tests.ops.asked import product_of

DATA = kinds()
INT8 = ("int8/row/fp32", "int8/tensor/fp32")
FP8 = ("e4m3/tensor/fp32", "e4m3/row/fp32", "e5m2/tensor/fp32")


def stored(x: Tensor, text: str, axis: int) -> tuple[Tensor, Tensor]:
    codes, scales, _ = ops.quantize(x, text, axis)
    return codes, scales


@pytest.mark.parametrize("text", [*INT8, *FP8])
@pytest.mark.parametrize("kind", DATA)
def test_the_fast_codes_are_those_of_the_definition(text: str, kind: str) -> None:
    fmt = parse_format(text)
    for x in (DATA[kind], DATA[kind].mT, DATA[kind][:, ::3], DATA[kind].bfloat16()):
        for axis in (-1, -2):
            codes, scales, whole = numerics.quantize(x, fmt, axis, visible=True)
            work = Quantize(format=fmt, wanted="codes", dtype=x.dtype)
            assert choose(work, at_hand("cpu")).kernel.name == "cpu codes"
            fast = codes_of_matrix(x, fmt, axis)
            assert same_bits(fast[1], scales)
            live = scales.isfinite().expand(codes.shape)  # elsewhere no code stands for anything
            assert torch.equal(fast[0][live], codes[live])
            assert float(whole) == 1.0


@pytest.mark.parametrize("left", [*INT8, *FP8])
@pytest.mark.parametrize("right", [*INT8, *FP8])
def test_a_product_is_the_exact_one_of_the_dequantized_within_its_roundings(
    left: str, right: str
) -> None:
    formats = parse_format(left), parse_format(right)
    kind = product_of(left, right, at_hand("cpu"), always=True)
    if kind.startswith("no "):
        ints = [text.startswith("int") for text in (left, right)]
        blocks = [text.split("/")[1] for text in (left, right)]
        assert ints[0] != ints[1] or (not any(ints) and blocks[0] != blocks[1])
        return
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(40, 70, generator=generator), torch.randn(70, 24, generator=generator))
    bias = torch.randn(24, generator=generator)
    x, y = stored(a, left, -1), stored(b, right, -2)
    exact = (
        numerics.fake_quant(a, formats[0], -1).double()
        @ numerics.fake_quant(b, formats[1], -2).double()
    )
    size = (
        numerics.fake_quant(a, formats[0], -1).abs().double()
        @ numerics.fake_quant(b, formats[1], -2).abs().double()
    )
    for added in (None, bias):
        got = ops.scaled_mm(*x, *y, kind, left, right, torch.float32, added)
        want = exact if added is None else exact + added.double()
        # int8: a sum without error, one conversion, two products, one addition, and the rounding of
        # each dequantized operand. fp8: a float32 sum of 70 terms beside that.
        steps = 6 if kind == "int8" else 70 + 6
        bound = steps * 2.0**-24 * (size + (0 if added is None else added.abs().double()))
        assert bool(((got.double() - want).abs() <= bound).all())
    assert ops.scaled_mm(*x, *y, kind, left, right, torch.bfloat16, None).dtype == torch.bfloat16


@pytest.mark.parametrize("recipe", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(40, 48), (7, 48), (2, 5, 48), (1, 48)])
def test_training_equals_emulation_but_for_the_sums(recipe: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = MLP(48, 64, 33)
    x, target = torch.randn(shape), torch.randn(*shape[:-1], 33)
    emulated, lowered = deepcopy(model), deepcopy(model)
    qgraph.compile(emulated, recipe, codegen=False)
    qgraph.compile(lowered, recipe, target="native-always", codegen=False)
    want, got, plain = (
        take_step(m, x, target, seed=0) for m in (emulated, lowered, deepcopy(model))
    )
    assert torch.allclose(got.output, want.output, rtol=1e-5, atol=1e-5)
    for name, grad in got.gradients.items():
        scale = float(want.gradients[name].abs().max())
        assert torch.allclose(grad, want.gradients[name], rtol=1e-4, atol=1e-5 * scale), name
    assert any(
        not torch.allclose(g, plain.gradients[n], rtol=1e-4, atol=1e-6)
        for n, g in got.gradients.items()
    )
    entries = qgraph.coverage(lowered).entries
    assert {entry.lowering for entry in entries} == {
        f"native {'int8' if recipe == 'int8' else 'fp8'}"
    }
    assert {entry.lowering for entry in qgraph.coverage(emulated).entries} == {""}


def test_inductor_compiles_a_llama_on_int8_products() -> None:
    model, inputs = one_block()
    plain = deepcopy(model)
    qgraph.compile(model, "int8", target="native-always")
    loss = model(**inputs).loss
    loss.backward()
    want = plain(**inputs).loss
    want.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=0.02)
    assert float(loss.detach()) != float(want.detach())
    for (name, found), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert reference.grad is not None
        like = torch.nn.functional.cosine_similarity(
            found.grad.flatten(), reference.grad.flatten(), 0
        )
        assert float(like) > 0.97, name
    lowered = [e.lowering for e in qgraph.coverage(model).entries if e.status == "quantized"]
    assert set(lowered) == {"native int8"}
    assert f"{len(lowered)} products: native int8" in report_text(qgraph.coverage(model))


@pytest.mark.parametrize(
    "shape", [(5, 1, 3), (1, 1, 1), (4, 0, 3), (64, 1, 48), (1, 7, 1), (0, 4, 3)]
)
def test_odd_sizes_multiply_right(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    a = torch.randint(-127, 128, shape[:2], generator=generator).to(torch.int8)
    b = torch.randint(-127, 128, (shape[2], shape[1]), generator=generator).to(torch.int8)
    one = torch.ones(1, 1)
    found = ops.scaled_mm(
        a.view(torch.uint8),
        one,
        b.view(torch.uint8),
        one,
        "int8",
        *["int8/row/fp32"] * 2,
        torch.float32,
    )
    assert torch.equal(found, (a.long() @ b.long().T).float())


HEAD = "qgraph: 1\nname: n\ntransforms:\n  rht: {hadamard: 16, signs: te}\nrules:\n- match: {op: linear}\n"
REASONS = {
    "fprop: {input: nvfp4, weight: nvfp4}": "no native product takes e2m1/1x16/e4m3/fp32",
    "fprop: {input: int8_row}": "no native product with an operand in high precision",
    "fprop: {input: int8_row, weight: e4m3/row/fp32}": "no native product of int8 and e4m3",
    "fprop: {input: int4/row/fp32, weight: int8_row}": "no native product of these integers",
    "fprop: {input: int6/row/fp32, weight: int6/row/fp32}": "no native product of these integers",
    "fprop: {input: int8+full/row/fp32, weight: int8_row}": "no native product of these integers",
    "fprop: {input: fp8_row, weight: fp8_tensor}": "no native product of a row and a tensor scale",
    "fprop: {input: fp8_row, weight: fp8_row}": (
        "no native fp8 product on a cpu that is faster than emulation"
    ),
    "fprop: {input: {format: int8_row, rounding: stochastic}, weight: int8_row}": (
        "no native product of operands that are rotated or rounded at random"
    ),
    "fprop: {input: {format: int8_row, transform: rht}, weight: {format: int8_row, transform: rht}}": (
        "no native product of operands that are rotated or rounded at random"
    ),
}


@pytest.mark.parametrize("rule", REASONS)
def test_what_is_not_native_is_emulated_bit_for_bit_and_says_why(rule: str) -> None:
    policy = load_policy_text(HEAD + f"  {rule}\n")
    torch.manual_seed(0)
    model, x, target = MLP(32, 32), torch.randn(16, 32), torch.randn(16, 32)
    emulated = qgraph.compile(deepcopy(model), policy, codegen=False)
    how: Target = "native" if "faster" in REASONS[rule] else "native-always"
    qgraph.compile(model, policy, target=how, codegen=False)
    got, want = (take_step(m, x, target, seed=3) for m in (model, emulated))
    assert not got.differing(want)
    (entry,) = [e for e in qgraph.coverage(model).entries if e.status == "quantized"]
    assert entry.lowering == f"emulated: {REASONS[rule]}"


def test_integers_are_multiplied_natively_where_this_cpu_does_it_faster() -> None:
    text = "int8/row/fp32"
    codes = torch.ones(512, 512, dtype=torch.int8)
    values = codes.float()

    def multiply_codes() -> None:
        aten.int_mm(codes, codes)

    def multiply_values() -> None:
        torch.mm(values, values)

    integers, floats = alternate([multiply_codes, multiply_values], rounds=9)
    ratio = over(integers, floats)[1]
    assert (product_of(text, text, at_hand("cpu")) == "int8") == (ratio < 1), ratio
    assert product_of(text, text, at_hand("cpu"), always=True) == "int8"


class Matmul(nn.Module):
    """A batched product of two activations."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.mT, -1) @ x


def test_a_batched_product_stays_emulated() -> None:
    policy = load_policy_text(
        "qgraph: 1\nname: n\nrules:\n- fprop: {lhs: int8_row, rhs: int8_row}\n"
    )
    model = qgraph.compile(Matmul(), policy, target="native", codegen=False)
    model(torch.randn(2, 8, 16))
    lowered = {e.lowering for e in qgraph.coverage(model).entries if e.status == "quantized"}
    assert lowered == {"emulated: no native product for aten.bmm.default"}


def test_an_unknown_target_is_refused_before_anything_is_compiled() -> None:
    model = MLP(8, 8)
    with pytest.raises(
        ModelError, match=r"unknown target 'gpu'\n  fix: use one of: emulate, native, native-always"
    ):
        qgraph.compile(model, "int8", target="gpu")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="was not compiled by qgraph"):
        qgraph.coverage(model)


def test_sums_that_int32_cannot_hold_are_not_native() -> None:
    assert MAX_SUMMED * 127**2 <= 2**31 - 1 < (MAX_SUMMED + 1) * 127**2


def test_without_kernels_the_sums_are_scaled_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(5, 16), torch.randn(16, 3)
    x, y = stored(a, "int8/row/fp32", -1), stored(b, "int8/row/fp32", -2)
    args = (*x, *y, "int8", "int8/row/fp32", "int8/row/fp32", torch.float32, torch.ones(3))
    fast = ops.scaled_mm(*args)
    with monkeypatch.context() as changed:
        changed.setenv("CXX", "no-such-compiler")
        changed.setenv("PATH", "")
        build._library.cache_clear()
        forget_machines()
        assert at_hand("cpu").no_compiler is not None
        assert same_bits(ops.scaled_mm(*args), fast)
    build._library.cache_clear()
    forget_machines()
    assert same_bits(ops.scaled_mm(*args), fast)


MX = ("e4m3/1x32/ue8m0-rceil", "e5m2/1x32/ue8m0-rceil")


@pytest.mark.parametrize("text", ["e4m3/tensor/fp32", *MX])
def test_codes_of_both_axes_are_those_of_each(text: str) -> None:
    x = torch.randn(35, 40, generator=torch.Generator().manual_seed(5))
    found = ops.quantize_both(x, text)
    want = [part for axis in (-1, -2) for part in stored(x, text, axis)]
    with FakeTensorMode():
        shown = ops.quantize_both(torch.empty(35, 40), text)
    for one, other, fake in zip(found, want, shown, strict=True):
        assert torch.equal(one, other)
        assert (fake.shape, fake.dtype) == (one.shape, one.dtype)


@pytest.mark.parametrize(
    ("formats", "capability", "dtype", "found"),
    [
        (("int8/row/fp32", "int8/tensor/fp32"), (8, 0), torch.float32, "int8"),
        (("e4m3/tensor/fp32", "e5m2/tensor/fp32"), (8, 9), torch.float32, "fp8"),
        (("e4m3/tensor/fp32",) * 2, (8, 0), torch.float32, "on a GPU of capability 8.0"),
        (("e5m2/tensor/fp32",) * 2, (9, 0), torch.float32, "of two e5m2"),
        (("e4m3/row/fp32",) * 2, (9, 0), torch.bfloat16, "fp8"),
        (("e4m3/row/fp32",) * 2, (9, 0), torch.float32, "gives float32: bfloat16 only"),
        (("e4m3/row/fp32",) * 2, (8, 9), torch.bfloat16, "on a GPU of capability 8.9"),
        (("e4m3/row/fp32", "e4m3/tensor/fp32"), (9, 0), torch.bfloat16, "a row and a tensor scale"),
        ((MX[0], MX[1]), (10, 0), torch.bfloat16, "mxfp8"),
        ((MX[0], MX[0]), (9, 0), torch.bfloat16, "no native mxfp8 product with 1x32 scales"),
        (("e2m1/1x32/ue8m0-rceil",) * 2, (10, 0), torch.bfloat16, "no native product of e2m1"),
        (("e4m3/1x16/ue8m0-rceil",) * 2, (10, 0), torch.bfloat16, "no native product takes"),
    ],
)
def test_a_gpu_multiplies_what_its_capability_says(
    formats: tuple[str, str], capability: tuple[int, int], dtype: torch.dtype, found: str
) -> None:
    machine = Machine(device="cuda", capability=capability)
    usual, always = (
        product_of(*formats, machine, always=a, dtype=dtype, flops=2**36) for a in (False, True)
    )
    if found in ("int8", "fp8", "mxfp8"):
        assert always == found
        if formats[0] == "e4m3/tensor/fp32":
            assert usual == "fp8"
        else:
            assert re.match(f"no native {found} product .*faster", usual)
    else:
        assert always[:3] == "no "
        assert found in always
        assert usual == always


@pytest.mark.parametrize("text", ["e4m3/tensor/fp32", "e4m3/row/fp32", *MX])
def test_operands_are_laid_out_as_a_gpu_reads_them(text: str) -> None:
    generator = torch.Generator().manual_seed(3)
    fmt = parse_format(text)
    scaling = str(fmt.block)
    x, w = torch.randn(35, 40, generator=generator), torch.randn(21, 40, generator=generator)
    sides = []
    for value, right in ((x, False), (w, True)):
        codes, scales = as_torch(*numerics.quantize(value, fmt, -1)[:2], fmt)
        laid, shown = laid_out(codes, scales, scaling, True, right)
        assert laid.shape[1] % 16 == 0
        assert not right or laid.shape[0] % 16 == 0
        assert laid.is_contiguous()
        sides.append((laid, shown))
    (a, a_scale), (b, b_scale) = sides
    # What torch demands of a GPU's operands, it demands of fake ones too.
    with standing_in(find_device("b200")), FakeTensorMode():
        fakes = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in (a, b)
        ]
        rates = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in (a_scale, b_scale)]
        recipe, layout = RECIPES[scaling]
        shape = torch.nn.functional.scaled_mm(
            fakes[0], fakes[1].mT, rates[0], recipe, rates[1], recipe, layout, layout
        ).shape
    assert shape == (35, 32)
    # Read back, the codes and scales are those of emulation.
    values = [numerics.fake_quant(value, fmt, -1) for value in (x, w)]
    for (laid, shown), value, right in zip(sides, values, (False, True), strict=True):
        rows = value.shape[0]
        if scaling == "1x32":
            factor = unswizzle(shown.view(torch.uint8), laid.shape[0], laid.shape[1] // 32)
            factor = torch.exp2(factor.float() - 127).repeat_interleave(32, 1)
        else:
            factor = shown if scaling == "tensor" else (shown.mT if right else shown)
        read = laid.float() * factor
        assert torch.equal(read[:rows, :40], value)
        assert not read[rows:].any()
        assert not read[:, 40:].any()
