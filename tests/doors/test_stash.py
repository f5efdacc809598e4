"""What is saved for the backward, stored in few bits: bytes, gradients, and that it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import qgraph
from qgraph import numerics
from qgraph.doors.aot import capture, compile_capture
from qgraph.doors.parallel import alone_as
from qgraph.formats import parse_format
from qgraph.passes import Report, names_of, report_json, report_text, run_passes
from qgraph.policy import Policy, load_policy, load_policy_text

HEAD = "qgraph: 1\nname: p\nrules: [{match: {}, keep: high}]\n"
BFP4 = parse_format("bfp4")


def policy(text: str, rules: str = "") -> Policy:
    head = HEAD.replace("[{match: {}, keep: high}]", rules) if rules else HEAD
    return load_policy_text(head + text)


class Chain(nn.Module):
    """Two layers: the second's input is saved, and nothing else that is not a parameter or input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 96, bias=False)
        self.second = nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    out = model(x)
    out.pow(2).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def compiled(model: nn.Module, chosen: Policy, **options: Any) -> nn.Module:
    torch._dynamo.reset()
    found: nn.Module = qgraph.compile(model, chosen, codegen=False, **options)
    return found


def held(model: nn.Module, inputs: dict[str, Any], once: bool) -> tuple[Any, int]:
    """Return the model's result, and the bytes autograd holds for its backward.

    Parameters and inputs are not counted. With `once` each piece of memory may be held once only.
    """
    own = {v.untyped_storage().data_ptr() for v in (*model.parameters(), *model.buffers())}
    own |= {v.untyped_storage().data_ptr() for v in inputs.values() if isinstance(v, Tensor)}
    sizes: dict[int, int] = {}
    kept = []

    def pack(value: Tensor) -> Tensor:
        place = value.untyped_storage().data_ptr()
        kept.append(value)
        if place not in own:
            assert not (once and place in sizes), "saved twice"
            sizes[place] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = model(**inputs)
    return result, sum(sizes.values())


def llama() -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=2, use_cache=False,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def test_a_llama_saves_a_third_at_most_in_blocks_of_four_bits() -> None:
    ids = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "labels": ids}
    rules = (
        "stash:\n  - {match: {module: lm_head}, keep: high}\n"
        "  - {match: {op: sdpa}, format: bfp8}\n  - {match: {blocks: -1, module: '*.mlp'}, format: bfp6}\n"
        "  - {match: {min_size: 20000, module: '*.mlp.*'}, format: nvfp4}\n  - {format: bfp4}\n"
    )
    found = {}
    for text in ("parameters: {storage: fp32}\n", rules):
        model = compiled(llama(), policy(text))
        result, size = held(model, inputs, once=text == rules)
        result.loss.backward()
        report = qgraph.coverage(model)
        found[text] = (result.loss.detach(), size, [_grad(p) for p in model.parameters()], report)
    (plain, full, exact, _), (loss, size, grads, report) = found.values()
    assert torch.equal(plain, loss)  # the forward is what it was
    assert size / full < 0.35
    # The report counts what autograd holds; views of one tensor count once in both.
    assert report.saved_bytes[1] == size
    assert report.saved_bytes[0] == full
    errors = [(a - b).norm() / a.norm() for a, b in zip(exact, grads, strict=True)]
    assert all(0 < error < 0.3 for error in errors)

    by_format: dict[str, set[str]] = {}
    for tensor in (t for group in report.saved.values() for t in group):
        by_format.setdefault(tensor.format, set()).add(f"{tensor.module} {tensor.op}".strip())
    assert by_format[str(parse_format("bfp8"))] == {
        f"model.layers.{i}.self_attn sdpa" for i in (0, 1)
    }
    assert by_format[str(parse_format("bfp6"))] == {"model.layers.1.mlp"}
    assert by_format[str(parse_format("nvfp4"))] == {
        f"model.layers.{i}.mlp.{name}_proj linear" for i in (0, 1) for name in ("gate", "up")
    }
    assert "lm_head linear" in by_format["high"]
    assert "model.embed_tokens" in by_format[str(BFP4)]

    text = report_text(report, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert f"stored in {size / 1e6:.2f} MB" in text
    assert "kept: stash rule 1 (module lm_head)" in text
    assert "a statistic: one number a row" in text
    data = report_json(report)
    assert data["saved_bytes"]["stored"] == sum(t["stored"] for t in data["saved"])


@pytest.mark.parametrize("recipe", ["nvfp4_no_keep", "fp8", "int8"])
def test_quantized_weights_do_not_wait_for_the_backward(recipe: str) -> None:
    ids = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "labels": ids}
    _, plain = held(compiled(llama(), load_policy("high")), inputs, once=False)
    model = compiled(llama(), load_policy(recipe))
    result, size = held(model, inputs, once=False)
    weights = sum(4 * p.numel() for n, p in model.named_parameters() if "proj" in n)
    # Quantized activations take the place of others, not all of one size: less than the weights are.
    assert 0.06 * plain < 0.5 * weights
    assert size < 1.06 * plain
    result.loss.backward()


def test_a_gradient_is_that_of_the_stored_input_and_within_the_formats_bound() -> None:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    model = compiled(Chain(), policy("stash: bfp4\n"))
    first, second = gradients(model, x)
    plain = Chain()
    exact = gradients(plain, x)
    with torch.no_grad():
        hidden = plain.first(x)
        upstream = 2 * plain.second(hidden)
        stored = numerics.fake_quant(hidden, BFP4, -1)
        bound = numerics.error_bound(hidden, BFP4, -1, parse_rounding_nearest())
    assert torch.allclose(first, exact[0], rtol=1e-5, atol=1e-6)  # reads the input itself
    assert torch.allclose(second, upstream.T @ stored, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(second, exact[1], rtol=1e-3)
    assert bound is not None
    assert ((second - exact[1]).abs() <= upstream.abs().T @ bound + 1e-4).all()
    (tensors,) = qgraph.coverage(model).saved.values()
    assert [(t.shape, t.bytes, t.stored) for t in tensors] == [
        ((40, 96), 40 * 96 * 4, 40 * 96 // 2 + 40 * 3 + 4)
    ]


def parse_rounding_nearest() -> Any:
    from qgraph.formats.rounding import NEAREST

    return NEAREST


def test_what_is_quantized_already_is_stored_as_its_own_codes_exactly() -> None:
    rules = "[{match: {op: linear}, fprop: {input: f, weight: f}, dgrad: {weight: f}, wgrad: {input: f}}]"
    text = "formats: {f: {element: int8, block: tensor, scale: fp32}}\n"
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    plain = gradients(compiled(Chain(), policy(text, rules)), x)
    model = compiled(Chain(), policy(text + "stash: bfp8\n", rules))
    assert all(map(torch.equal, gradients(model, x), plain))
    (tensors,) = qgraph.coverage(model).saved.values()
    assert {t.format for t in tensors} == {"int8/tensor/fp32"}
    assert all(t.exact for t in tensors)
    assert "exactly: quantized already" in report_text(qgraph.coverage(model))
    # A rule that wants fewer bits gets them.
    model = compiled(Chain(), policy(text + "stash: bfp4\n", rules))
    assert not all(map(torch.equal, gradients(model, x), plain))


def test_stochastic_rounding_is_fair_and_drawn_anew_each_step() -> None:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    model = compiled(Chain(), policy("stash: [{format: bfp4, rounding: stochastic}]\n"))
    exact = gradients(Chain(), x)[1]
    assert torch.equal(gradients(model, x)[1], gradients(model, x)[1])  # the same seed
    total = torch.zeros_like(exact)
    errors = []
    for step in range(1, 65):
        model.zero_grad()
        model(x).pow(2).sum().backward()
        total += next(
            p.grad
            for n, p in model.named_parameters()
            if n == "second.weight" and p.grad is not None
        )
        errors.append(((total / step - exact).norm() / exact.norm()).item())
    assert errors[-1] < errors[0] / 4  # an eighth, were it normal


def test_each_process_rounds_what_it_stores_by_bits_of_its_own() -> None:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    chosen = policy("stash: [{format: bfp4, rounding: stochastic}]\n")
    found = []
    for stream in (0, 1):
        with alone_as(stream):
            found.append(gradients(compiled(Chain(), chosen), x))
    assert torch.equal(found[0][0], found[1][0])  # it reads the input itself, which is not stored
    assert not torch.equal(found[0][1], found[1][1])
    # A process alone has the bits of the first.
    assert all(map(torch.equal, gradients(compiled(Chain(), chosen), x), found[0]))


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Layouts(nn.Module):
    """Saved tensors that are transposed, of odd sizes, of one axis, and read by several products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(24, 21)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.down = nn.Linear(35, 7)
        self.scale = nn.Parameter(torch.randn(21))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x) * self.scale.sigmoid())  # [6, 7, 21]
        turned = hidden.permute(2, 0, 1).exp()  # an order that is not its own inverse
        image = self.conv((turned.permute(1, 0, 2) @ hidden).sin().view(2, 3, 21, 21))
        wide = image.permute(0, 2, 3, 1).reshape(-1, 35)
        found: Tensor = self.down(torch.nn.functional.gelu(wide)).softmax(-1) * wide[:, :7]
        return found


@pytest.mark.parametrize(
    "fmt", ["int16/1x32/fp32", "int16/4x16/fp32", "int16/row/fp32", "int16/tensor/fp32"]
)
def test_every_layout_comes_back_as_it_was(fmt: str) -> None:
    x = torch.randn(6, 7, 24, generator=torch.Generator().manual_seed(3))
    exact = gradients(Layouts(), x)
    model = compiled(Layouts(), policy(f"stash: {fmt}\n"))
    for one, two in zip(gradients(model, x), exact, strict=True):
        assert torch.allclose(one, two, rtol=2e-3, atol=2e-3 * two.abs().max().item())
    (tensors,) = qgraph.coverage(model).saved.values()
    assert len([t for t in tensors if t.format != "high"]) >= 5


def test_both_doors_store_the_same() -> None:
    chosen = policy("stash: bfp4\n")
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    by_op = gradients(compiled(Chain(), chosen), x)
    torch._dynamo.reset()
    jit = qgraph.compile(Chain(), chosen)
    found = gradients(jit, x)
    saved = [*qgraph.coverage(jit).saved.values()]
    for one, two in zip(found, by_op, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-4)
    model = Chain()
    captured = capture(model, {"x": x}, chosen)
    run_passes(captured.step(), names_of("joint", "lower", "watch"))
    run = compile_capture(captured, chosen)
    run(x=x).pow(2).sum().backward()
    assert all(map(torch.equal, map(_grad, model.parameters()), found))
    report = qgraph.conversion(qgraph.convert(Chain(), chosen, {"x": x})).report
    assert [*report.saved.values()] == saved


def test_what_is_not_stashed_says_why() -> None:
    class Odd(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32, 32))
            self.register_buffer("table", torch.randn(32, 32))

        def forward(self, x: Tensor) -> Tensor:
            turned = x @ (self.weight.exp() @ self.weight)
            return turned @ (self.table @ self.table) @ self.weight

    x = torch.randn(64, 32, requires_grad=True, generator=torch.Generator().manual_seed(0))
    model = compiled(Odd(), policy("stash: bfp4\n"))
    model(x).sum().backward()
    report: Report = qgraph.coverage(model)
    why = {t.reason for group in report.saved.values() for t in group}
    assert "it depends on no parameter" in why
    assert "it is made of parameters alone" in why
