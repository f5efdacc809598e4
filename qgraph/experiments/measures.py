"""The kinds of run that experiments are made of: an arm and a seed in, numbers out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qgraph.doors import compile
from qgraph.experiments.experiment import Experiment
from qgraph.experiments.small_models import Batches, fresh_model, fresh_weights
from qgraph.formats import parse_format
from qgraph.numerics import fake_quant, sqnr_db
from qgraph.ops import state
from qgraph.policy import Policy
from qgraph.predict import critical_tokens, penalty
from qgraph.training import Run, logit_sharpness, quantize_optimizer, spike_share

Metrics = dict[str, float]
Measure = Callable[[Experiment, str, int, Callable[[str], None]], Metrics]
_SHAPE = ("hidden", "layers", "batch", "length", "steps", "rate")


def language(experiment: Experiment, arm: str, seed: int, say: Callable[[str], None]) -> Metrics:
    """Train a byte-level model under the arm's policy, on the standard library's sources.

    Settings: `model` (llama or gpt2), its sizes, `steps`, `rate`, `tail`. Arm keys: `policy`, with its
    schedule, optimizer states and stash; `rate`; `perturb` (initial weights changed by that share).
    Metrics: `loss`, the mean over the last `tail` steps; `sharpness`, see `logit_sharpness`, of the
    last step; `spikes`, see `spike_share`; `diverged`, 1 if the end is no better than a tenth of the
    way in, or not finite.
    """
    settings = {**experiment.settings, **experiment.arms[arm]}
    steps, tail = int(settings["steps"]), int(settings.get("tail", 50))
    policy = experiment.policy(arm)
    batches = Batches(settings, torch.Generator().manual_seed(seed))
    model = _compiled(policy, settings)
    _load(model, fresh_weights(settings, seed, perturb=float(settings.get("perturb", 0.0))))
    plain = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    optimizer = quantize_optimizer(plain, policy, model)
    run = Run(model, steps=steps, say=say) if policy.schedule else None
    losses: list[float] = []
    logits, labels = torch.zeros(()), torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = float(settings["rate"]) * _warm_cosine(step, steps)
        labels = batches.next()
        torch.manual_seed(seed * 1_000_003 + step)  # whatever was drawn before, by compiling too
        out = model(input_ids=labels, labels=labels)
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if run is not None:
            run.step(out.loss)
        losses.append(out.loss.item())
        logits = out.logits.detach()
        if step % 50 == 0:
            say(f"{arm}, seed {seed}: step {step} of {steps}, loss {losses[-1]:.3f}")
    end = sum(losses[-tail:]) / tail
    early = sum(losses[steps // 10 : steps // 10 + 10]) / 10
    return {
        "loss": end,
        "sharpness": logit_sharpness(logits[:, :-1], labels[:, 1:]),
        "spikes": spike_share(losses),
        "diverged": float(not math.isfinite(end) or end >= early),
    }


def regression(experiment: Experiment, arm: str, seed: int, say: Callable[[str], None]) -> Metrics:
    """Train a student of two linear layers on a teacher's outputs; `loss` is the end's mean.

    The inputs have a few large channels, as activations do.
    """
    settings = {**experiment.settings, **experiment.arms[arm]}
    size, steps = int(settings["size"]), int(settings["steps"])
    generator = torch.Generator().manual_seed(seed)
    teacher, fresh = _perceptron(size, generator), _perceptron(size, generator)
    policy = experiment.policy(arm)
    key = f"regression {size} {policy.fingerprint()}"
    if key not in state.EXPERIMENT_MODELS:
        state.EXPERIMENT_MODELS[key] = compile(_perceptron(size, generator), policy, codegen=False)
    student = state.EXPERIMENT_MODELS[key]
    student.load_state_dict(fresh.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), float(settings["rate"]))
    gains = torch.ones(size)
    gains[: size // 16] = float(settings.get("gain", 8))
    losses = []
    for step in range(steps):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = float(settings["rate"]) * _warm_cosine(step, steps)
        x = torch.randn(int(settings["batch"]), size, generator=generator) * gains
        with torch.no_grad():
            y = teacher(x)
        loss = (student(x) - y).square().mean() / y.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    say(f"{arm}, seed {seed}: {losses[-1]:.4f}")
    return {"loss": sum(losses[-50:]) / 50}


def tensor(experiment: Experiment, arm: str, seed: int, say: Callable[[str], None]) -> Metrics:
    """Quantize data of several kinds to the arm's `format`; metrics: the SQNR of each, in dB.

    Kinds: `normal`; `gradient`, normal times 1e-5; `heavy`, Student's t with 3 degrees of freedom;
    `outlier`, normal with 2% of the channels 30 times as large.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, size = int(experiment.settings["rows"]), int(experiment.settings["size"])
    normal = torch.randn(rows, size, generator=generator)
    chi = torch.randn(3, rows, size, generator=generator).square().sum(0) / 3
    gains = torch.where(torch.rand(size, generator=generator) < 0.02, 30.0, 1.0)
    kinds = {
        "normal": normal, "gradient": normal * 1e-5, "heavy": normal / chi.sqrt(), "outlier": normal * gains,
    }  # fmt: skip
    fmt = parse_format(str(experiment.arms[arm]["format"]))
    say(f"{arm}, seed {seed}")
    found = {}
    for name, x in kinds.items():
        error = (fake_quant(x, fmt, -1).double() - x.double()).square().sum().item()
        # A difference of two arms must be a number: no error counts as next to none.
        found[name] = sqnr_db(x.double().square().sum().item(), max(error, 1e-300))
    return found


def law(experiment: Experiment, arm: str, seed: int, say: Callable[[str], None]) -> Metrics:
    """Ask the scaling law: `critical`, the tokens past which the arm's `format` loses, in 1e12."""
    say(arm)
    fmt = parse_format(str(experiment.arms[arm]["format"]))
    params = float(experiment.settings["params"])
    tokens = float(experiment.settings["tokens"])
    return {
        "critical": critical_tokens(params, fmt) / 1e12,
        "penalty": penalty(params, tokens, fmt),
    }


def decode(experiment: Experiment, arm: str, seed: int, say: Callable[[str], None]) -> Metrics:
    """Decode greedily the same prompts in batches of several sizes, in the arm's dtypes.

    Arm keys: `storage` and `compute` of the weights, as torch names dtypes. The model is trained
    first, in float32. Metrics: `diverging`, the share of prompts whose text is not the same in every
    batch size; `first`, the mean place of the first differing byte (the length if none); `logits`,
    the largest difference of the prompts' first logits.
    """
    settings = {**experiment.settings, **experiment.arms[arm]}
    model = _plainly_trained(settings, seed, say)
    model = model.to(getattr(torch, str(settings["storage"])))
    model = model.to(getattr(torch, str(settings["compute"]))).eval()
    prompts = Batches(settings, torch.Generator().manual_seed(10_000 + seed)).next()
    count, length = int(settings["prompts"]), int(settings["length"])
    prompts = prompts.repeat(-(-count // len(prompts)), 1)[:count, : length // 2]
    prompts = (prompts + torch.arange(count)[:, None] // int(settings["batch"])) % 256
    texts, firsts = [], []
    for size in settings["sizes"]:
        say(f"{arm}, seed {seed}: decoding in batches of {size}")
        parts = [_decoded(model, part, length - length // 2) for part in prompts.split(int(size))]
        texts.append(torch.cat([tokens for tokens, _ in parts]))
        firsts.append(torch.cat([logits for _, logits in parts]))
    differ = torch.stack([text != texts[0] for text in texts]).any(0)  # [prompts, places]
    places = torch.where(differ.any(1), differ.int().argmax(1), differ.shape[1])
    return {
        "diverging": differ.any(1).float().mean().item(),
        "first": places.float().mean().item(),
        "logits": max((f - firsts[0]).abs().max().item() for f in firsts),
    }


def _plainly_trained(settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> Any:
    key = f"plain {sorted((k, str(v)) for k, v in settings.items() if k in _SHAPE)} {seed}"
    if key not in state.EXPERIMENT_MODELS:
        torch.manual_seed(seed)
        model = fresh_model(settings)
        optimizer = torch.optim.AdamW(model.parameters(), float(settings["rate"]), fused=True)
        batches = Batches(settings, torch.Generator().manual_seed(seed))
        for step in range(int(settings["steps"])):
            ids = batches.next()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 0:
                say(f"training, seed {seed}: step {step}, loss {loss.item():.3f}")
        state.EXPERIMENT_MODELS[key] = model
    return copy.deepcopy(state.EXPERIMENT_MODELS[key])


def _decoded(model: Any, prompts: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Return the `places` bytes that follow, each the likeliest, and the logits of the first.

    Shapes: prompts [B, T] -> [B, places], [B, 256].
    """
    ids, first = prompts, torch.zeros(())
    with torch.no_grad():
        for place in range(places):
            logits = model(input_ids=ids).logits[:, -1].float()
            first = logits if place == 0 else first
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[:, prompts.shape[1] :], first


def _perceptron(size: int, generator: torch.Generator) -> nn.Module:
    model = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size))
    for p in model.parameters():
        nn.init.normal_(p, std=size**-0.5, generator=generator)
    return model


def _compiled(policy: Policy, settings: Mapping[str, Any]) -> Any:
    shape = [settings.get(key) for key in ("model", "hidden", "layers", "batch", "length")]
    key = f"language {shape} {policy.fingerprint()}"
    if policy.schedule:  # it leaves its model at the last stage
        return compile(fresh_model(settings), policy, codegen=False)
    if key not in state.EXPERIMENT_MODELS:
        state.EXPERIMENT_MODELS[key] = compile(fresh_model(settings), policy, codegen=False)
        ids = torch.zeros(int(settings["batch"]), int(settings["length"]), dtype=torch.int64)
        state.EXPERIMENT_MODELS[key](input_ids=ids, labels=ids).loss.backward()  # compiles
    state.EXPERIMENT_MODELS[key].zero_grad(set_to_none=True)
    return state.EXPERIMENT_MODELS[key]


def _load(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Load the weights; histories, which the policy adds, begin at zero."""
    own = {n: torch.zeros_like(v) for n, v in model.state_dict().items() if n not in weights}
    model.load_state_dict({**own, **weights})


def _warm_cosine(step: int, steps: int) -> float:
    """Return the rate's factor: a linear warm-up over a twentieth of the run, then a cosine to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


# Raised when a formula of a measure's numbers changes: runs kept from before are then run again.
EDITIONS: Mapping[str, int] = {"language": 2}
MEASURES: Mapping[str, Measure] = {
    "language": language,
    "regression": regression,
    "tensor": tensor,
    "law": law,
    "decode": decode,
}
