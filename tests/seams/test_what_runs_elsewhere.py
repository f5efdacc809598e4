"""Code that torch runs as it is, outside of compiled graphs: it is named, or it is compiled after all."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

import qgraph
from qgraph.compat import watching
from qgraph.errors import ModelError, PolicyError
from qgraph.passes import read_report, report_json, report_text
from qgraph.policy import load_policy_text
from tests.cases import is_before


class Two(nn.Module):
    """Two linear layers; what lies between them may be anything."""

    def __init__(self, between: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(64, 64), between(), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        found = self.between(self.first(x))
        last: Tensor = self.last(found[0] if isinstance(found, tuple) else found)
        return last


class Hidden(nn.Module):
    """A layer that Dynamo is told not to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64) / 8)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Any:
        return nn.functional.linear(x, self.weight)


def recurrent() -> nn.Module:
    return nn.LSTM(64, 64, batch_first=True)


def quantized(model: Any, **options: Any) -> tuple[Any, Any]:
    """Return `model` compiled, and as it was."""
    high = copy.deepcopy(model)
    return qgraph.compile(model, "mxfp8", codegen=False, **options), high


def elsewhere(model: nn.Module) -> set[str]:
    return {f"{found.module} {found.op}" for found in qgraph.coverage(model).elsewhere}


@contextmanager
def told() -> Iterator[list[str]]:
    """Collect what qgraph warns of."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in found if issubclass(w.category, qgraph.QGraphWarning)]


def step(model: nn.Module, x: Tensor) -> Tensor:
    """Return what `model` computes, after a backward."""
    y: Tensor = model(x)
    y.square().sum().backward()
    return y.detach()


def data(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 8, 64), generator=torch.Generator().manual_seed(1))


# A torch before 2.12 runs as it is what else the module calls that holds an LSTM.
AROUND_LSTM = {"first aten::linear", "last aten::linear"} if is_before((2, 12)) else set[str]()


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (recurrent, AROUND_LSTM | {"between aten::lstm"}),
        (Hidden, {"between aten::linear"}),
    ],
    ids=["lstm", "disabled"],
)
def test_code_that_dynamo_runs_as_it_is_is_named_once(
    between: Callable[[], nn.Module], expected: set[str]
) -> None:
    model, _ = quantized(Two(between))
    with told() as texts:
        for _ in range(3):
            step(model, data())
    assert elsewhere(model) == expected
    # Torch's own layers around it are compiled by themselves, or named.
    alone = {"first", "last"} - {name.split()[0] for name in expected}
    assert alone <= {e.module for e in qgraph.coverage(model).quantized}
    times = 1 if alone else 2  # the layers around it run so from the second call on
    assert len([text for text in texts if "outside the compiled graphs" in text]) == times
    report = qgraph.coverage(model)
    assert "outside the compiled graphs, in high precision: aten::" in report_text(report)
    again = read_report(report_json(report), report.policy)
    assert again.elsewhere == report.elsewhere


def test_a_model_that_is_all_in_graphs_has_nothing_elsewhere() -> None:
    model, _ = quantized(Two())
    with told() as texts:
        for size in (2, 3, 5):
            step(model, data(size, 8, 64))
        model.eval()
        with torch.no_grad():
            model(data())
    assert not elsewhere(model)
    assert not texts
    assert not qgraph.coverage(model).unaudited


def test_strict_and_coverage_stop_what_runs_elsewhere() -> None:
    model, _ = quantized(Two(Hidden), strict=True)
    with pytest.raises(ModelError, match=r"1 products run outside .* aten::linear of between"):
        step(model, data())
    text = "qgraph: 1\nname: held\nextends: mxfp8\ncoverage: {min_flops: 10%}\n"
    held = qgraph.compile(Two(Hidden), load_policy_text(text, "p"), codegen=False)
    with pytest.raises(PolicyError, match="run outside the compiled graphs"):
        step(held, data())


def test_coverage_is_held_where_no_graph_was_captured() -> None:
    text = "qgraph: 1\nname: held\nextends: mxfp8\ncoverage: {min_flops: 90%}\n"
    model = qgraph.compile(recurrent(), load_policy_text(text, "p"), codegen=False)
    with pytest.raises(PolicyError, match=r"0\.0% of product FLOPs are quantized"):
        model(data())


def test_a_step_under_a_dispatch_mode_says_so_and_spoils_no_other() -> None:
    model, high = quantized(Two())
    with told() as texts, FlopCounterMode(display=False):
        inside = step(model, data())
    assert torch.equal(inside, high(data()))
    assert len(texts) == 1
    assert "FlopCounterMode" in texts[0]
    assert not torch.equal(step(model, data()), inside)
    assert len(qgraph.coverage(model).quantized) == 5


def test_weights_that_are_no_parameters_are_weights() -> None:
    model, _ = quantized(Two())
    whole = step(model, data())
    fast = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, fast, (data(),)), whole)


def test_the_encoder_that_generate_calls_is_the_models() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=100, d_model=64, d_ff=128, num_layers=1, num_heads=4, d_kv=16,
        dropout_rate=0.0,
    )  # fmt: skip
    model, high = quantized(T5ForConditionalGeneration(config).eval())
    ids = torch.randint(2, 100, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(input_ids=ids, decoder_input_ids=ids[:, :1]).encoder_last_hidden_state
        alone = model.get_encoder()(input_ids=ids).last_hidden_state
        plain = high.get_encoder()(input_ids=ids).last_hidden_state
    # A rounding error of the layer norm turns few codes; high precision is as far off as all of them.
    assert float((alone - whole).norm()) < 0.1 * float((alone - plain).norm())


def test_forward_and_parts_called_alone_run_under_the_policy() -> None:
    model, high = quantized(Two())
    whole = model(data())
    assert torch.equal(model.forward(data()), whole)
    part = model.first(data())
    assert not torch.equal(part, high.first(data()))
    assert torch.equal(model.last(part.relu()), whole)
    assert {e.module for e in qgraph.coverage(model).quantized} == {"first", "last"}


def test_copies_and_what_was_pickled_have_a_forward_of_their_own() -> None:
    model, high = quantized(Two())
    plain = high(data())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other.forward(data()), plain)
        assert torch.equal(other(data()), plain)
        with torch.no_grad():
            other.last.weight.zero_()
        assert torch.equal(other.forward(data()), other.last.bias.expand(2, 8, 32))
    assert not torch.equal(model.forward(data()), plain)


def test_torchs_encoder_layers_are_quantized_in_evaluation_too() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model, high = quantized(nn.TransformerEncoder(layer, 1).eval())
    high.eval()
    with torch.no_grad():
        assert not torch.allclose(model(data()), high(data()), rtol=1e-3)
    assert len(qgraph.coverage(model).quantized) == 4
    assert not elsewhere(model)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_compiled_model_is_exported_as_it_is() -> None:
    model, high = quantized(Two())
    with told() as texts:
        program = torch.export.export(model, (data(),))
    assert torch.equal(program.module()(data()), high(data()))
    assert not texts
    assert len(qgraph.coverage(model).quantized) == 0


def test_another_compile_around_it_does_not_swallow_the_model() -> None:
    model, _ = quantized(Two())
    whole = model(data())
    assert torch.equal(torch.compile(lambda x: model(x) * 1.0, backend="eager")(data()), whole)
    assert not elsewhere(model)


def test_a_users_profiler_is_left_alone_and_the_audit_waits() -> None:
    model, _ = quantized(Two(Hidden))
    with told() as texts, torch.profiler.profile() as profile:
        step(model, data())
    assert "aten::mm" in {event.key for event in profile.key_averages()}
    assert not texts
    assert not elsewhere(model)
    assert "were not looked for: a profiler" in report_text(qgraph.coverage(model))
    step(model, data())
    assert elsewhere(model) == {"between aten::linear"}
    assert not qgraph.coverage(model).unaudited


def test_a_gradient_taken_inside_of_a_call_is_no_product_elsewhere() -> None:
    class Penalty(Two):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            y = super().forward(x)
            torch._dynamo.graph_break()
            (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            return y + slope[..., :32]

    model, _ = quantized(Penalty())
    with told() as texts:
        for _ in range(2):
            step(model, data())
    assert not elsewhere(model)
    assert not texts


def test_graphs_that_no_longer_run_are_told_at_once_and_looked_for_next() -> None:
    model, high = quantized(Two())
    step(model, data())
    with torch.compiler.set_stance("force_eager"):
        with told() as texts:
            assert torch.equal(model(data()), high(data()))
        assert len(texts) == 1
        assert "0 compiled graphs ran in this call, where 1 did" in texts[0]
        with told() as texts:
            model(data())
        assert any("2 products run outside" in text for text in texts)
    assert elsewhere(model) == {"first aten::linear", "last aten::linear"}


def test_an_audit_that_sees_nothing_fails_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_operations", lambda _: iter(()))
    model, _ = quantized(Two(Hidden))
    step(model, data())
    assert not elsewhere(model)  # the same model as above, where it is named
