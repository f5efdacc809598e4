"""Kill a training run again and again, resume it each time, and compare with one that was left alone.

python -m tests.harness.kill --kills 20
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from qgraph.errors import QGraphError, RunError
from qgraph.policy import Policy, load_policy, load_policy_text
from qgraph.training.compare import Settings, Store, train_each
from qgraph.training.manifest import check_checkpoint

# The state a run leaves: weights and amax histories, optimizer, schedule, generators.
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
LENGTH, BATCH = 32, 4
# All that a resume must bring back: amax histories, random bits, redrawn signs, a switch.
EVERYTHING = """
qgraph: 1
name: everything
formats:
  late: {element: e4m3, block: tensor, scale: fp32, range: delayed3}
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
transforms:
  rht: {hadamard: 16, signs: step}
rules:
  - match: {op: linear}
    fprop: {input: late, weight: late}
    dgrad: {grad_output: {format: fp4, rounding: stochastic}, weight: fp4}
    wgrad:
      input: {format: fp4, transform: rht}
      grad_output: {format: fp4, transform: rht, rounding: stochastic}
schedule:
  - {at: 60%, set: {fprop: high}}
"""
PATIENCE = 300.0  # seconds without a word from a run


@dataclass(kw_only=True)
class Life:
    """One process: the step it resumed from, the last one it began, and how it ended."""

    start: int = 0
    step: int = 0
    saving: bool = False
    refused: str = ""
    finished: bool = False

    @property
    def text(self) -> str:
        """One line."""
        how = "finished" if self.finished else f"killed in step {self.step}"
        how += ", while saving" if self.saving else ""
        how += f"; {self.refused}" if self.refused else ""
        return f"from step {self.start}: {how}"


@dataclass(kw_only=True)
class Trial:
    """A killed run beside an unbroken one; `differs` names what is not the same, bit for bit."""

    lives: list[Life] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    steps: int = 0


def run_trial(
    policy: Policy, *, kills: int, steps: int, every: int, seed: int, say: Callable[[str], None]
) -> Trial:
    """Train a small Llama once unbroken and once killed `kills` times at random moments; compare.

    Each life is a fork that SIGKILL ends; a third of the kills is aimed at a checkpoint being
    written. Nothing of one life reaches the next but what is on the disk.

    Raises: RunError if a life ends by itself before its time, or says nothing for 300 s.
    """
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    draw = random.Random(seed)
    settings = Settings(
        steps=steps, batch=BATCH, length=LENGTH, rate=3e-3, seed=seed, codegen=False, held_out=0.2
    )
    trial = Trial(steps=steps)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        say("the unbroken run")
        _live(home / "whole", policy, settings, every, None)
        for number in range(kills + 1):
            aim = None if number == kills else (draw, number % 3 == 2)
            trial.lives.append(_live(home / "killed", policy, settings, every, aim))
            say(trial.lives[-1].text)
        trial.differs = _differences(home, steps)
    return trial


Aim = tuple[random.Random, bool]  # what draws the moment, and whether it is within a save


def _live(folder: Path, policy: Policy, settings: Settings, every: int, aim: Aim | None) -> Life:
    """Run one process to its end, or to its random death."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _train(folder, policy, settings, every, writing)
    os.close(writing)
    life = Life()
    try:
        _watch(reading, life, settings.steps, every, aim)
        if aim is not None and not life.finished:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        if not life.finished:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return life


def _watch(reading: int, life: Life, steps: int, every: int, aim: Aim | None) -> None:
    """Follow what a run says; return when it ends, or when the moment to kill it has come."""
    target, span, began, buffer = 0, 0.05, time.monotonic(), b""
    while True:
        if not select.select([reading], [], [], PATIENCE)[0]:
            raise RunError(f"a run said nothing for {PATIENCE:.0f} s, at step {life.step}")
        said = os.read(reading, 4096)
        if not said:
            raise RunError(f"a run ended by itself at step {life.step}")
        *lines, buffer = (buffer + said).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "failed":
                raise RunError(f"a run failed: {rest}")
            if word == "refused":
                life.refused = rest
            elif word == "start":
                life.start = int(rest)
                if aim is not None:
                    target = _target(aim, life.start, steps, every)
            elif word == "finished":
                life.finished = True
                return
            elif word == "begin":
                now, life.step, life.saving = time.monotonic(), int(rest), False
                if life.step == target and aim is not None and not aim[1]:
                    time.sleep(aim[0].random() * span)
                    return
                span, began = min(span, now - began), now  # a step takes about so long
            elif word == "end" and int(rest) == target and aim is not None and aim[1]:
                life.saving = True
                time.sleep(aim[0].random() * 0.06)
                return


def _target(aim: Aim, start: int, steps: int, every: int) -> int:
    """Return the step to die in: within two checkpoints, so that the run gets on between deaths."""
    draw, saving = aim
    if saving:
        return min((start // every + 1) * every, steps)
    return draw.randint(start + 1, min(start + every + 1, steps))


class _Tell(TrainerCallback):
    """Say over a pipe where training is."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(f"start {state.global_step}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(f"begin {state.global_step + 1}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(f"end {state.global_step}")

    def say(self, text: str) -> None:
        os.write(self._pipe, f"{text}\n".encode())


def _train(folder: Path, policy: Policy, settings: Settings, every: int, pipe: int) -> None:
    """Train in this process, a fork, and leave it."""
    tell = _Tell(pipe)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        torch.manual_seed(settings.seed)
        source = folder.parent / "model"
        if not source.exists():
            LlamaForCausalLM(_config()).save_pretrained(source)
        # Not a whole number of checkpoints in an epoch: some lie at its end, some within it.
        rows = (2 * every + 1) * BATCH
        generator = torch.Generator().manual_seed(settings.seed)
        ids = torch.randint(0, 64, (int(rows * LENGTH / 0.8) + LENGTH,), generator=generator)
        store = Store(folder=folder, every=every, resume=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_each(str(source), [policy], ids, settings, lambda _: _tell_refused(tell, caught),
                       store, [tell])  # fmt: skip
        tell.say("finished")
    except QGraphError as error:
        tell.say(f"failed {error.problem}")
    except Exception as error:  # noqa: BLE001 - nothing may leave a fork
        tell.say(f"failed {error!r}".replace("\n", " ")[:1000])
    finally:
        os._exit(0)


def _tell_refused(tell: _Tell, caught: list[warnings.WarningMessage]) -> None:
    for warning in caught:
        if "refused" in str(warning.message):
            tell.say("refused " + str(warning.message).replace("\n", " "))
    caught.clear()


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        attention_dropout=0.1,
    )  # fmt: skip


def _differences(home: Path, steps: int) -> list[str]:
    import json

    found, logs = [], []
    for name in ("whole", "killed"):
        folder = home / name / "policy" / f"checkpoint-{steps}"
        found.append(check_checkpoint(folder).files)
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        logs.append([(entry["step"], entry["loss"]) for entry in log if "loss" in entry])
    differs = [name for name in FILES if found[0][name] != found[1][name]]
    return differs + (["losses"] if logs[0] != logs[1] or len(logs[0]) != steps else [])


def _say(text: str) -> None:
    """Tell how far it is, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill the run.")] = 20,
    policy: Annotated[
        str | None,
        typer.Option(help="A policy file or a recipe's name; else one with all that is random."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the whole run.")] = 40,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the run, and of when it is killed.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kill a run at random moments, resume it, and hold it against one that was never killed.

    Losses of every step, weights, amax histories, optimizer, schedule and generators are compared, bit for
    bit; it exits 1 if anything differs. JSON keys: policy, kills, steps, lives (start, step, saving,
    refused, finished of each process), differs.

    Example: python -m tests.harness.kill --kills 20
    """
    import json
    from dataclasses import asdict

    try:
        trial = run_trial(
            load_policy(policy) if policy else load_policy_text(EVERYTHING),
            kills=kills,
            steps=steps,
            every=save_every,
            seed=seed,
            say=_say,
        )
    except QGraphError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    if as_json:
        found = {"policy": policy or "everything", "kills": kills, **asdict(trial)}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        torn = sum(bool(life.refused) for life in trial.lives)
        sys.stdout.write(
            f"{kills} kills, {torn} torn checkpoints refused; against the unbroken run of {steps} steps: "
            + (
                f"{', '.join(trial.differs)} differ\n"
                if trial.differs
                else "bit for bit the same\n"
            )
        )
    raise typer.Exit(1 if trial.differs else 0)


if __name__ == "__main__":
    typer.run(main)
