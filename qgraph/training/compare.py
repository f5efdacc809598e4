"""Train one model under several policies, with the same seeds and data, and compare the losses."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from qgraph.doors import compile
from qgraph.models import load_model
from qgraph.passes import Target
from qgraph.policy import Policy
from qgraph.training.checkpoint import (
    CheckpointCallback,
    checkpoint_step,
    last_checkpoint,
    load_finished,
)
from qgraph.training.states.optimizer import optimizer_for, state_bytes
from qgraph.training.text import Windows
from qgraph.training.trainer import QGraphCallback


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
    timeout: int = 600  # seconds that processes wait for each other


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where runs keep checkpoints, in a folder each (`policy`, `baseline`), and every how many steps.

    With `resume` each policy goes on from its last good checkpoint, if it has one.
    """

    folder: Path
    every: int
    resume: bool = False
    allow_other_policy: bool = False

    def place(self, index: int) -> Path:
        """Return the folder of the run of that index; not named by policy, which a resume may change."""
        return (
            self.folder / ("policy", "baseline")[index] if index < 2 else self.folder / str(index)
        )


@dataclass(kw_only=True)
class ComparedRun:
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
    store: Store | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[ComparedRun]:
    """Train `source` once under each policy; everything but the policy is the same.

    The coverage table of each run is printed after its first step. With a `store` each run leaves
    checkpoints, and one that resumes gives the bits of one that was never broken off.

    Raises: CheckpointError as `last_checkpoint`.
    """
    cut = len(ids) - min(int(len(ids) * settings.held_out), 64 * settings.batch * settings.length)
    train, held_out = Windows(ids[:cut], settings.length), Windows(ids[cut:], settings.length)
    runs = []
    for index, policy in enumerate(policies):
        model = compile(
            load_model(source, settings.seed),
            policy,
            target=settings.target,
            codegen=settings.codegen,
        )
        run = ComparedRun(policy=policy.name, model=model)
        with tempfile.TemporaryDirectory() as temporary:
            folder = str(store.place(index)) if store else temporary
            trainer = Trainer(
                model=model,
                args=_arguments(folder, settings, store),
                train_dataset=train,
                eval_dataset=held_out,
                callbacks=[
                    QGraphCallback(),
                    _Watch(policy.name, settings.steps, say),
                    *([CheckpointCallback(allow_other_policy=True)] if store else []),
                    *callbacks,
                ],
            )
            optimizer = optimizer_for(trainer, policy)
            trainer.remove_callback(PrinterCallback)  # progress is told through `say`
            last = _last(folder, policy, store, trainer.args)
            if store is not None and store.resume:
                where = (
                    "its beginning: there is no checkpoint yet" if last is None else Path(last).name
                )
                say(f"resuming {policy.name} from {where}")
            if last is not None and checkpoint_step(last) >= settings.steps:
                load_finished(trainer, last)  # Trainer would take one step more
            else:
                trainer.train(resume_from_checkpoint=last)
            logged = [(int(e["step"]), e["loss"]) for e in trainer.state.log_history if "loss" in e]
            run.losses = _points(logged, settings) if store else logged
            run.states = state_bytes(optimizer)
            run.held_out = trainer.evaluate()["eval_loss"]
        runs.append(run)
    return runs


def gap_percent(run: ComparedRun, baseline: ComparedRun) -> float:
    """Return how far `run`'s held-out loss lies above the baseline's, in percent."""
    return 100 * (run.held_out - baseline.held_out) / baseline.held_out


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; 0 of one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def plot_losses(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write the loss curves as a PNG; runs of one policy, of several seeds, in one colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colours: dict[str, str] = {}
    for run in runs:
        steps, losses = zip(*run.losses, strict=True)
        held_out = statistics.mean(r.held_out for r in runs if r.policy == run.policy)
        label = None if run.policy in colours else f"{run.policy} (held-out {held_out:.3f})"
        colour = colours.setdefault(run.policy, f"C{len(colours)}")
        axes.plot(steps, losses, label=label, linewidth=1.6, color=colour)
    axes.set(
        xlabel="step",
        ylabel="training loss [nats per token]",
        title="Same seeds, same data" + (", two policies" if len(runs) > 1 else ""),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _last(folder: str, policy: Policy, store: Store | None, args: Any) -> str | None:
    if store is None or not store.resume:
        return None
    return last_checkpoint(
        folder,
        policy,
        allow_other_policy=store.allow_other_policy,
        processes=args.world_size,
    )


def _points(losses: list[tuple[int, float]], settings: Settings) -> list[tuple[int, float]]:
    """Return the mean of each stretch of steps, as Trainer would log them."""
    every = _stretch(settings)
    cut = [losses[i : i + every] for i in range(0, len(losses) - every + 1, every)]
    return [(part[-1][0], sum(loss for _, loss in part) / every) for part in cut]


def _stretch(settings: Settings) -> int:
    return max(1, settings.steps // 20)


def _arguments(folder: str, settings: Settings, store: Store | None) -> TrainingArguments:
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
        # Every step's loss is in a checkpoint, so that where a run was broken off changes no number.
        logging_steps=1 if store else _stretch(settings),
        save_strategy="steps" if store else "no",
        save_steps=store.every if store else 500,
        save_total_limit=3,
        report_to="none",
        disable_tqdm=True,
        prediction_loss_only=True,
        ddp_timeout=settings.timeout,
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
        if logs and "loss" in logs and state.global_step % max(1, self._steps // 20) == 0:
            self._say(
                f"{self._name}: step {state.global_step} of {self._steps}, loss {float(logs['loss']):.3f}"
            )
