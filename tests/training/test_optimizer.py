"""Optimizer states in few bits: the same numbers packed and emulated, in memory and in checkpoints."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import qgraph
from qgraph import numerics
from qgraph.errors import ModelError, PolicyError, QGraphWarning
from qgraph.formats import parse_format
from qgraph.policy import Policy, load_policy_text
from qgraph.training.text import Windows

HEAD = "qgraph: 1\nname: p\nrules: [{match: {}, keep: high}]\n"
Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
M8V8 = "optimizer: {exp_avg: int8/row/fp32, exp_avg_sq: e5m2/1x32/ue8m0}\n"
RANDOM = (
    "optimizer: {exp_avg: {format: bfp4, rounding: stochastic}, exp_avg_sq: "
    "{format: e5m2/1x32/ue8m0, rounding: stochastic}}\n"
)


def policy(text: str) -> Policy:
    return load_policy_text(HEAD + text)


def network() -> nn.Module:
    torch.manual_seed(0)
    # 50 columns are no multiple of a block; the norm's and the biases' states are vectors.
    return nn.Sequential(nn.Linear(32, 50), nn.LayerNorm(50), nn.Linear(50, 32))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, **options: Any
) -> list[Tensor]:
    for step in range(first, first + steps):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x).pow(2).mean().backward()
        optimizer.step(**options)
    return [p.detach().clone() for p in model.parameters()]


def adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, **options)


def started(text: str, make: Make = adam) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    return model, qgraph.quantize_optimizer(make(model.parameters()), policy(text), model)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return bool(one == two)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"amsgrad": True}]
)
@pytest.mark.parametrize("text", [M8V8, RANDOM])
def test_packed_and_emulated_are_one_trajectory(text: str, options: dict[str, bool]) -> None:
    found = []
    for storage in ("packed", "emulated"):
        model, optimizer = started(
            text.replace("{exp_avg", f"{{storage: {storage}, exp_avg", 1),
            lambda p: adam(p, **options),
        )
        found.append(train(model, optimizer, 5))
    assert all(map(torch.equal, *found))
    model = network()
    plain = train(model, adam(model.parameters(), **options), 5)
    assert not any(map(torch.equal, found[0], plain))


def test_the_trajectory_is_that_of_the_papers_emulation() -> None:
    # EfficientLLMs: at the start of each step quantize and dequantize, then step in fp32.
    model, optimizer = started(M8V8)
    found = train(model, optimizer, 6)
    model = network()
    plain = adam(model.parameters())
    formats = {"exp_avg": "int8/row/fp32", "exp_avg_sq": "e5m2/1x32/ue8m0"}
    for step in range(6):
        for parameter in model.parameters():
            for name, fmt in formats.items() if parameter.dim() == 2 else ():
                if parameter in plain.state:
                    x = plain.state[parameter][name]
                    x.copy_(numerics.fake_quant(x, parse_format(fmt), -1))
        train(model, plain, 1, first=step)
    assert all(map(torch.equal, found, model.parameters()))


def test_eight_bit_first_moments_follow_the_papers_formula() -> None:
    # Its own words: step = amax / 127, code = round(x / step). Ties apart, the same numbers.
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros_like(x))
    optimizer = torch.optim.AdamW([parameter], betas=(0.0, 0.9))
    qgraph.quantize_optimizer(optimizer, policy("optimizer: {exp_avg: int8/row/fp32}\n"))
    parameter.grad = x
    optimizer.step()
    step = x.abs().amax(-1, keepdim=True) / 127
    code = (x / step).round().clamp(-128, 127)
    value = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(value["codes"].view(torch.int8), code.to(torch.int8))
    assert torch.allclose(value["scales"], step, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("fmt", "most"),
    [("int8/row/fp32", 0.26), ("bfp4", 0.14), ("e2m1/1x16/e4m3/fp32", 0.15), ("mxfp8", 0.27)],
)
def test_bytes_of_a_state_before_and_after(fmt: str, most: float) -> None:
    sizes = []
    for text in (f"optimizer: {{momentum_buffer: {fmt}}}\n", ""):
        parameter = nn.Parameter(torch.zeros(128, 256))
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        if text:
            qgraph.quantize_optimizer(optimizer, policy(text))
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        sizes.append(qgraph.state_bytes(optimizer)["momentum_buffer"])
    packed, plain = sizes
    assert plain == 4 * 128 * 256
    assert packed / plain < most
    held = optimizer.state_dict()
    assert sum(v.nbytes for v in held["state"][0].values()) == plain


def test_a_step_never_holds_all_states_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    from qgraph.training.states import keeping
    from qgraph.training.states import optimizer as module
    from qgraph.training.states.packing import Packed

    monkeypatch.setattr(module, "CHUNK", 1000)
    model, optimizer = started(M8V8)
    train(model, optimizer, 1)
    most = 0
    close = keeping.Keeper.close

    def watched(self: Any, opened: Any, parameters: Any, state: Any, group: Any) -> None:
        nonlocal most
        values = [s["exp_avg"] for s in state.values() if s["exp_avg"].shape[-1:] != ()]
        whole = sum(v.numel() for v in values if not isinstance(v, Packed) and v.dim() == 2)
        most = max(most, whole)
        close(self, opened, parameters, state, group)

    monkeypatch.setattr(keeping.Keeper, "close", watched)
    train(model, optimizer, 1)
    assert most == 50 * 32  # one matrix of the two


@pytest.mark.parametrize("text", [M8V8, RANDOM])
@pytest.mark.parametrize("storage", ["packed", "emulated"])
def test_a_run_resumed_from_a_file_equals_an_unbroken_one(text: str, storage: str) -> None:
    text = text.replace("{exp_avg", f"{{storage: {storage}, exp_avg", 1)
    model, optimizer = started(text)
    train(model, optimizer, 3)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    found = train(model, optimizer, 3, first=3)
    torch.manual_seed(0)
    again, other = started(text)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert equal(other.state_dict()["state"], state["state"])
    assert all(map(torch.equal, train(again, other, 3, first=3), found))


def test_state_dicts_load_across_packed_emulated_and_plain() -> None:
    model, packed = started(M8V8)
    train(model, packed, 3)
    weights, state = model.state_dict(), through_a_file(packed.state_dict())
    assert state["state"][0]["exp_avg"]["codes"].dtype == torch.uint8
    values = qgraph.unpack_state_dict(state)
    assert all(v.shape == (50, 32) for k, v in values["state"][0].items() if k != "step")

    _, emulated = started(M8V8.replace("{exp_avg", "{storage: emulated, exp_avg"))
    emulated.load_state_dict(state)
    assert equal(emulated.state_dict()["state"], values["state"])

    plain_model = network()
    plain = adam(plain_model.parameters())
    plain.load_state_dict(values)
    assert equal(plain.state_dict()["state"], values["state"])

    _, back = started(M8V8)
    back.load_state_dict(emulated.state_dict())
    assert equal(qgraph.unpack_state_dict(back.state_dict())["state"], values["state"])

    _, coarser = started("optimizer: {exp_avg: bfp4}\n")
    coarser.load_state_dict(state)
    bytes_of = qgraph.state_bytes(coarser)
    assert bytes_of["exp_avg"] < qgraph.state_bytes(packed)["exp_avg"]
    assert bytes_of["exp_avg_sq"] == qgraph.state_bytes(plain)["exp_avg_sq"]

    # Loaded by an optimizer that knows nothing of it, and only then quantized: what a callback does.
    late_model = network()
    late_model.load_state_dict(weights)
    late = adam(late_model.parameters())
    late.load_state_dict(state)
    qgraph.quantize_optimizer(late, policy(M8V8), late_model)
    assert equal(late.state_dict()["state"], state["state"])
    assert all(map(torch.equal, train(late_model, late, 2, 3), train(model, packed, 2, 3)))


def test_groups_keep_their_own_settings_and_kept_modules_their_states() -> None:
    model = network()
    first, last = model[0], model[2]  # type: ignore[index]
    groups = [
        {"params": first.parameters(), "lr": 1e-2},
        {"params": last.parameters(), "lr": 0.0, "weight_decay": 0.0},
        {"params": model[1].parameters()},  # type: ignore[index]
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    qgraph.quantize_optimizer(
        optimizer, policy(M8V8.replace("{exp", "{keep: ['2'], exp", 1)), model
    )
    before = last.weight.detach().clone()
    train(model, optimizer, 2)
    assert torch.equal(last.weight, before)
    state = optimizer.state_dict()["state"]
    assert [isinstance(state[i]["exp_avg"], dict) for i in range(6)] == [True] + 5 * [False]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]


def test_closures_hooks_and_schedulers_work_as_before() -> None:
    for early in (True, False):
        model = network()
        optimizer = adam(model.parameters())
        called: list[str] = []
        optimizer.register_step_pre_hook(lambda *_, to=called: to.append("pre"))
        optimizer.register_step_post_hook(lambda *_, to=called: to.append("post"))
        if early:
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        qgraph.quantize_optimizer(optimizer, policy(M8V8))
        if not early:
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

        def closure(model: nn.Module = model) -> Tensor:
            loss = model(torch.ones(4, 32)).pow(2).mean()
            loss.backward()
            return loss  # type: ignore[no-any-return]

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
            assert loss.detach() > 0
            schedule.step()
        assert called == ["pre", "post"]
        assert optimizer.param_groups[0]["lr"] == 5e-3
        assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), "momentum_buffer"),
        (lambda p: torch.optim.RMSprop(p, 1e-3), "square_avg"),
        (lambda p: torch.optim.Adagrad(p, 1e-2), "sum"),
        (lambda p: torch.optim.NAdam(p, 1e-3), "exp_avg"),
    ],
)
def test_any_optimizer_by_its_states_names(make: Make, name: str) -> None:
    model, optimizer = started(f"optimizer: {{{name}: e5m2/1x32/ue8m0}}\n", make)
    train(model, optimizer, 3)
    other = network()
    plain = make(other.parameters())
    train(other, plain, 3)
    sizes, whole = qgraph.state_bytes(optimizer), qgraph.state_bytes(plain)
    assert sizes[name] < 0.4 * whole[name]  # the biases stay
    start, quantized, exact = (
        torch.cat([p.detach().flatten() for p in each.parameters()])
        for each in (network(), model, other)
    )
    # It goes where the plain one goes, by a little another way.
    assert 0 < float((quantized - exact).norm()) < 0.05 * float((exact - start).norm())


def test_bad_input_is_told_before_the_first_step() -> None:
    model = network()
    with pytest.raises(PolicyError) as caught:
        qgraph.quantize_optimizer(adam(model.parameters()), policy("optimizer: {exp_avgs: bfp8}\n"))
    assert str(caught.value) == (
        "<string>:4:13: optimizer.exp_avgs: AdamW keeps no state of that name\n"
        "  fix: did you mean 'exp_avg'?"
    )
    plain = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(PolicyError, match="with these settings it keeps none"):
        qgraph.quantize_optimizer(plain, policy("optimizer: {momentum_buffer: bfp8}\n"))
    assert type(plain) is torch.optim.SGD
    with pytest.raises(ModelError, match="does not know its parameters' modules"):
        qgraph.quantize_optimizer(
            adam(model.parameters()), policy("optimizer: {keep: a, exp_avg: bfp8}\n")
        )
    with pytest.warns(QGraphWarning, match=r"exp_avg_sq: int8/tensor/fp32 is too coarse"):
        qgraph.quantize_optimizer(
            adam(model.parameters()), policy("optimizer: {exp_avg_sq: int8/tensor/fp32}\n")
        )
    with pytest.raises(ModelError, match=r"call qgraph.compile\(model, policy\) first"):
        qgraph.quantize_optimizer(
            adam(model.parameters()), policy("parameters: {storage: bf16, master: fp32}\n")
        )
    quantized = qgraph.quantize_optimizer(adam(model.parameters()), policy(M8V8))
    with pytest.raises(ModelError, match="another policy"):
        qgraph.quantize_optimizer(quantized, policy(RANDOM))


def test_second_moments_of_eight_linear_bits_explode_as_the_paper_says() -> None:
    # Elements of very different size share a scale: the small ones become zero, and v with them.
    torch.manual_seed(0)
    size = torch.logspace(-4, 0, 256)
    moved = {}
    for name, fmt in (("linear", "int8/tensor/fp32"), ("float", "e5m2/1x32/ue8m0")):
        parameter = nn.Parameter(torch.zeros(4, 256))
        optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            qgraph.quantize_optimizer(optimizer, policy(f"optimizer: {{exp_avg_sq: {fmt}}}\n"))
        for gradient in (size, torch.zeros(256)):  # as of a token that comes once
            parameter.grad = gradient.expand(4, 256).clone()
            optimizer.step()
        moved[name] = parameter.detach().abs().max().item()
    assert moved["float"] < 0.01
    assert moved["linear"] > 10 * moved["float"]


@pytest.mark.parametrize("way", ["optimizer_for", "callback"])
def test_inside_a_trainer_resumed_from_a_checkpoint(tmp_path: Path, way: str) -> None:
    class Callback(hf.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            qgraph.quantize_optimizer(kwargs["optimizer"], policy(M8V8), kwargs["model"])

    def trainer(folder: Path) -> hf.Trainer:
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        arguments = hf.TrainingArguments(
            output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=2,
            use_cpu=True, report_to="none", disable_tqdm=True, seed=3,
        )  # fmt: skip
        ids = torch.arange(64 * 20) % 251
        made = hf.Trainer(
            model=hf.LlamaForCausalLM(config), args=arguments, train_dataset=Windows(ids, 32),
            callbacks=[Callback()] if way == "callback" else [],
        )  # fmt: skip
        if way == "optimizer_for":
            qgraph.optimizer_for(made, policy(M8V8))
        return made

    whole = trainer(tmp_path / "whole")
    whole.train()
    saved = torch.load(tmp_path / "whole" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert any(isinstance(s["exp_avg"], dict) for s in saved["state"].values())
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.model is not None
    assert resumed.model is not None
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
