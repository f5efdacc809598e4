"""Rewritten graphs against quantized layers written from the definitions: equal bit for bit."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

import qgraph
from qgraph.formats import FloatFormat, IntFormat, parse_format
from qgraph.policy import Policy, load_policy
from tests.doors.capture import Call, Trace, interpret
from tests.doors.mlp import MLP
from tests.doors.models import make_llama, nvfp4_policy, policy_of, run_model, token_batch
from tests.doors.reference import (
    NVFP4,
    Recipe,
    ReferenceMLP,
    numeric,
    only,
    rotate,
    take_step,
    uniform,
)

E2M1, E4M3 = "e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil"
RECIPES = {
    "nvfp4": NVFP4,
    "nvfp4_naive": uniform(numeric(E2M1)),
    "mxfp8": uniform(numeric(E4M3)),
    "mxfp4": uniform(numeric("e2m1/1x32/ue8m0-rceil")),
    "fp8": uniform(numeric("e4m3/tensor/fp32"), gradient=numeric("e5m2/tensor/fp32")),
    "int8": uniform(numeric("int8/row/fp32")),
}
PLAIN = Recipe(formats={})


def _model() -> MLP:
    torch.manual_seed(0)
    return MLP(48, 64, 32)


def _data(kind: str = "plain") -> tuple[Tensor, Tensor]:
    """An input of 40 tokens and a target. Plain numbers do not tell dialects apart; the others do."""
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(2, 20, size, generator=generator) for size in (48, 32))
    if kind == "heavy rows":  # scales of many magnitudes, some of them below what e4m3 holds
        x = x * torch.exp(3 * torch.randn(2, 20, 1, generator=generator))
    elif kind == "zero blocks and an outlier":
        x[:, :, 16:32], x[0, 3, 5], target[0] = 0, 1e4, 0
    elif kind == "tiny":
        x, target = x * 1e-5, target * 1e-5
    return x, target


@pytest.mark.parametrize("kind", ["plain", "heavy rows", "zero blocks and an outlier", "tiny"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_loss_and_every_gradient_equal_eager_layers(recipe: str, kind: str) -> None:
    model, (x, target) = _model(), _data(kind)
    reference = deepcopy(model)
    trace = interpret(model, load_policy(recipe))
    got = take_step(model, x, target, seed=3)
    want = take_step(ReferenceMLP(reference, RECIPES[recipe], trace.streams()), x, target, seed=3)
    assert not got.differing(want)
    plain = take_step(reference, x, target, seed=3)
    assert {"output", "loss", "layers.fc0.weight", "layers.fc1.weight", "x"} <= set(
        got.differing(plain)
    )


@pytest.mark.parametrize(
    ("role", "changed"),
    [
        ("fprop", {"output", "loss", "layers.fc1.weight", "layers.fc0.weight", "x"}),
        ("dgrad", {"layers.fc0.weight", "layers.fc0.bias", "x"}),
        ("wgrad", {"layers.fc0.weight", "layers.fc1.weight"}),
    ],
)
def test_one_product_alone_equals_eager_layers_and_leaves_the_others_alone(
    role: str, changed: set[str]
) -> None:
    model, (x, target) = _model(), _data()
    reference = deepcopy(model)
    trace = interpret(model, nvfp4_policy(role))
    got = take_step(model, x, target, seed=3)
    want = take_step(ReferenceMLP(reference, only(NVFP4, role), trace.streams()), x, target, seed=3)
    assert not got.differing(want)
    different = set(got.differing(take_step(reference, x, target, seed=3)))
    # Changed outputs change the bias gradients too; what comes before a product cannot change.
    assert changed <= different
    assert role == "fprop" or different == changed


@pytest.mark.parametrize("role", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("operand", [0, 1])
def test_one_operand_alone_equals_eager_layers(role: str, operand: int) -> None:
    kind = {
        "fprop": ("input", "weight"),
        "dgrad": ("grad_output", "weight"),
        "wgrad": ("input", "grad_output"),
    }[role][operand]
    model, (x, target) = _model(), _data("heavy rows")
    reference = deepcopy(model)
    interpret(model, policy_of(f"  - {{match: {{op: linear}}, {role}: {{{kind}: fp8}}}}"))
    recipe = Recipe(formats={(role, kind): numeric(E4M3)})
    got = take_step(model, x, target, seed=3)
    assert not got.differing(take_step(ReferenceMLP(reference, recipe), x, target, seed=3))
    assert got.differing(take_step(reference, x, target, seed=3))


@pytest.mark.slow
def test_inductor_runs_nvfp4_as_eager_layers_do() -> None:
    model, (x, target) = _model(), _data()
    traced, reference = deepcopy(model), deepcopy(model)
    policy = load_policy("nvfp4")
    trace = interpret(traced, policy)
    take_step(traced, x, target, seed=3)
    got = take_step(qgraph.compile(model, policy), x, target, seed=3)
    want = take_step(ReferenceMLP(reference, NVFP4, trace.streams()), x, target, seed=3)
    biases = {"layers.fc0.bias", "layers.fc1.bias"}
    # The products are the same calls on the same values. Inductor sums a bias gradient in its own order.
    assert set(got.differing(want)) <= biases
    for layer in ("layers.fc0", "layers.fc1"):
        stream = trace.streams()[layer, "dgrad", "grad_output"]
        gradient = next(
            call.before for call in trace.calls if call.stream == stream and call.seed is not None
        )
        # n terms in any order: off by at most (n - 1)·2^-24 of the sum of magnitudes, for each of the two.
        bound = 2 * (len(gradient) - 1) * 2.0**-24 * gradient.abs().sum(0)
        assert (
            (got.gradients[f"{layer}.bias"] - want.gradients[f"{layer}.bias"]).abs() <= bound
        ).all()


# What is shared


@pytest.fixture(scope="module")
def llama_trace() -> Trace:
    """One step of a Llama under nvfp4, all blocks quantized."""
    model = make_llama()
    batch = token_batch()
    model(batch)
    trace = interpret(model, nvfp4_policy())
    run_model(model, input_ids=batch, labels=batch)
    return trace


def test_forward_and_backward_read_one_quantized_weight(llama_trace: Trace) -> None:
    weights = {
        module: read
        for (module, role, kind), read in llama_trace.reads.items()
        if (role, kind) == ("fprop", "weight")
    }
    assert len(weights) == 2 * 7 + 1
    for module, read in weights.items():
        assert read.quantizer
        assert llama_trace.reads[module, "dgrad", "weight"] == read
    assert len({read.quantizer for read in weights.values()}) == len(weights)


@pytest.mark.parametrize(
    "group", ["self_attn.q_proj self_attn.k_proj self_attn.v_proj", "mlp.gate_proj mlp.up_proj"]
)
def test_layers_that_read_one_tensor_read_one_quantized_tensor(
    llama_trace: Trace, group: str
) -> None:
    names = [f"model.layers.{block}.{name}" for block in (0, 1) for name in group.split()]
    for role in ("fprop", "wgrad"):
        readers: dict[str, set[str]] = {}
        for name in names:
            readers.setdefault(llama_trace.reads[name, role, "input"].quantizer, set()).add(name)
        assert "" not in readers
        assert sorted(map(sorted, readers.values())) == [
            sorted(names[: len(names) // 2]),
            sorted(names[len(names) // 2 :]),
        ]


def test_no_two_stochastic_quantizations_are_shared(llama_trace: Trace) -> None:
    random = [read.quantizer for read in llama_trace.reads.values() if read.stream is not None]
    assert len(random) == len(set(random)) == 2 * (2 * 7 + 1)


# Rotation without quantization


def _rotated_weight_gradient(transform: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rotated, plain) gradients of a 48 -> 32 layer's weight, and the layer's output gradient and input."""
    torch.manual_seed(0)
    model = MLP(48, 32, bias=False)
    plain = deepcopy(model)
    operand = f"{{format: high, transform: {transform}}}"
    interpret(
        model,
        policy_of(
            f"  - {{match: {{op: linear}}, wgrad: {{input: {operand}, grad_output: {operand}}}}}"
        ),
    )
    x, g = torch.randn(64, 48), torch.randn(64, 32)
    model(x).backward(g)
    plain(x).backward(g)
    rotated, same = model.weight(0).grad, plain.weight(0).grad
    assert rotated is not None
    assert same is not None
    return rotated, same, g, x


def _rotation_bound(g: Tensor, x: Tensor, output: float) -> Tensor:
    """How far the gradient may be from the plain one, rotated values rounded by `output` relative.

    With G, X the sums of |g|, |x| over a chunk of 16, divided by 4: a rotated value is at most X, four
    stages of sums leave it within 4u·X, u = 2^-24, and its rounding within output·X. A product's 16 terms
    a chunk are then off by 2·(4u + output)·GX each; the K terms of a float32 sum by K·u of their magnitudes,
    in each of the two products. 1.01 covers the terms of second order.
    """
    u, k = 2.0**-24, len(x)
    chunks = [v.double().abs().reshape(k // 16, 16, -1).sum(1) / 4 for v in (g, x)]
    spread: Tensor = 16 * (chunks[0].T @ chunks[1])
    direct: Tensor = g.double().abs().T @ x.double().abs()
    return 1.01 * ((2 * (4 * u + output) + k * u) * spread + k * u * direct)


def test_rotating_both_operands_leaves_the_weight_gradient_as_it_was() -> None:
    rotated, plain, g, x = _rotated_weight_gradient("rht32")
    assert not torch.equal(rotated, plain)
    assert ((rotated - plain).abs() <= _rotation_bound(g, x, 0)).all()
    # 2^-24 times the gradient is what two orders of one sum differ by; a lost rotation is off by all of it.
    assert (rotated - plain).norm() < 1e-6 * plain.norm()


def test_rounding_rotated_values_to_bfloat16_costs_more() -> None:
    rotated, plain, g, x = _rotated_weight_gradient("rht")
    exact = _rotated_weight_gradient("rht32")[0]
    assert ((rotated - plain).abs() <= _rotation_bound(g, x, 2.0**-8)).all()
    # bfloat16 has 16 bits less than float32: errors grow 2^16-fold, or, against float32's longer chain
    # of roundings, not much less.
    assert (rotated - plain).norm() > 2**10 * (exact - plain).norm()


# Error from both sides, at every site of a model


def _scale_bound(call: Call, x: Tensor) -> tuple[Tensor, float]:
    """(the largest step-one scale each element's block may have, what an underflowing scale may add)."""
    fmt = parse_format(call.format)
    rows = x.movedim(call.axis, -1)
    across, along = fmt.block.across or rows.shape[-2], fmt.block.along or rows.shape[-1]
    m, k = rows.shape[-2:]
    padded = torch.nn.functional.pad(rows, (0, -k % along, 0, -m % across))
    shape = (
        *padded.shape[:-2],
        padded.shape[-2] // across,
        across,
        padded.shape[-1] // along,
        along,
    )
    tiles = padded.reshape(shape).abs()
    amax = tiles.amax((-3, -1), keepdim=True)
    step = amax / fmt.element.max
    extra = 0.0
    if str(fmt.scale) == "e4m3":  # rounded within 1/16, or within half of its smallest step 2^-9
        tensor_scale = float(x.abs().max()) / (448 * fmt.element.max)
        step, extra = (
            step * (1 + 1 / 16) + 2.0**-10 * tensor_scale,
            fmt.element.max * 2.0**-10 * tensor_scale,
        )
    elif str(fmt.scale) == "ue8m0-rceil":  # rounded up to a power of two
        step = 2 * step
    whole = step.expand_as(tiles).flatten(-2, -1).flatten(-3, -2)[..., :m, :k]
    return whole.movedim(-1, call.axis), extra


def _error_bound(call: Call, x: Tensor) -> Tensor:
    """How far from x its quantized value may be: from the element's grid alone."""
    element = parse_format(call.format).element
    scale, extra = _scale_bound(call, x)
    share = 0.5 if call.seed is None else 1.0  # of a step, to nearest or stochastic
    if isinstance(element, IntFormat):
        bound = share * scale
    else:
        # A step is 2^-m of its binade's start, and 2^-m of the least normal number below it. Saturation, by
        # a scale rounded down by 1/17, loses less than the nearest rounding of e2m1 may.
        assert isinstance(element, FloatFormat)
        relative = share * 2.0**-element.mantissa_bits
        bound = torch.maximum(relative * x.abs(), relative * 2.0**element.min_exponent * scale)
    return (bound + extra) * (1 + 2.0**-16)  # fp32 arithmetic on the way, a few units of 2^-24


POLICIES = {name: load_policy(name) for name in RECIPES} | {"nvfp4": nvfp4_policy()}


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_quantization_changes_its_tensor_and_stays_within_its_grid(name: str) -> None:
    trace = _trace_llama(POLICIES[name])
    planned = sum(
        operand.format is not None for plan in trace.plans[0] for operand in plan.operands
    )
    assert planned == 7 * 6 + (6 if name == "nvfp4" else 0)  # with the head
    read = {r.quantizer for r in trace.reads.values() if r.quantizer}
    assert len(trace.calls) >= len(read)  # each ran; a few may run again in the backward
    for call in trace.calls:
        x = call.before
        if call.rotation:
            x = rotate(x, call.axis, torch.bfloat16 if call.rotation == "bf16" else torch.float32)
        error = (call.after - x).abs()
        assert (error <= _error_bound(call, x)).all(), call.format
        nonzero = x != 0
        assert (error[nonzero] > 0).float().mean() > 0.5, call.format


def _trace_llama(policy: Policy) -> Trace:
    model = make_llama(num_hidden_layers=1)
    batch = token_batch()
    model(batch)
    trace = interpret(model, policy)
    run_model(model, input_ids=batch, labels=batch)
    return trace
