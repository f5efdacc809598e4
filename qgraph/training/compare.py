"""Train one model under several policies, with the same seeds and data, and compare the losses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from qgraph.backend.jit import compile
from qgraph.backend.models import load_model
from qgraph.passes import Target
from qgraph.policy import Policy
from qgraph.training.callback import CoverageCallback
from qgraph.training.optimizer import optimizer_for, state_bytes
from qgraph.training.text import Windows


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. `held_out` is the share of the text kept for evaluation, at most 64 batches."""

    steps: int
    batch: int
    length: int
    rate: float
    seed: int
    bf16: bool = False
    codegen: bool = True
    target: Target = "emulate"
    held_out: float = 0.05


@dataclass(kw_only=True)
class Run:
    """One training run: loss by step, mean loss since the previous point, and the held-out loss."""

    policy: str
    model: Any
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: float = 0.0
    states: dict[str, int] = field(default_factory=dict)  # bytes of optimizer states, by name


def train_each(
    source: str,
    policies: Sequence[Policy],
    ids: torch.Tensor,
    settings: Settings,
    say: Callable[[str], None],
) -> list[Run]:
    """Train `source` once under each policy; everything but the policy is the same.

    The coverage table of each run is printed after its first step.
    """
    cut = len(ids) - min(int(len(ids) * settings.held_out), 64 * settings.batch * settings.length)
    train, held_out = Windows(ids[:cut], settings.length), Windows(ids[cut:], settings.length)
    runs = []
    for policy in policies:
        model = compile(
            load_model(source, settings.seed),
            policy,
            target=settings.target,
            codegen=settings.codegen,
        )
        run = Run(policy=policy.name, model=model)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=_arguments(folder, settings),
                train_dataset=train,
                eval_dataset=held_out,
                callbacks=[CoverageCallback(), _Watch(policy.name, settings.steps, say)],
            )
            optimizer_for(trainer, policy)
            trainer.remove_callback(PrinterCallback)  # progress is told through `say`
            trainer.train()
            run.losses = [
                (int(e["step"]), e["loss"]) for e in trainer.state.log_history if "loss" in e
            ]
            run.states = state_bytes(trainer.optimizer)
            run.held_out = trainer.evaluate()["eval_loss"]
        runs.append(run)
    return runs


def gap_percent(run: Run, baseline: Run) -> float:
    """Return how far `run`'s held-out loss lies above the baseline's, in percent."""
    return 100 * (run.held_out - baseline.held_out) / baseline.held_out


def plot_losses(runs: Sequence[Run], path: Path) -> None:
    """Write the loss curves as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for run in runs:
        steps, losses = zip(*run.losses, strict=True)
        axes.plot(steps, losses, label=f"{run.policy} (held-out {run.held_out:.3f})", linewidth=1.6)
    axes.set(
        xlabel="step",
        ylabel="training loss [nats per token]",
        title="Same seeds, same data, two policies",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _arguments(folder: str, settings: Settings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        dataloader_drop_last=True,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 20),
        weight_decay=0.1,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, settings.steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        prediction_loss_only=True,
    )


class _Watch(TrainerCallback):
    """Tell how far training is."""

    def __init__(self, name: str, steps: int, say: Callable[[str], None]) -> None:
        self._name, self._steps, self._say = name, steps, say

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say(f"compiling under {self._name}")

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._say(
                f"{self._name}: step {state.global_step} of {self._steps}, loss {float(logs['loss']):.3f}"
            )
