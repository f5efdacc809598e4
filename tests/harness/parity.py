"""Several processes beside one: the same losses and weights, within a bound, under each engine.

python -m tests.harness.parity --world 2 --engine ddp,fsdp,tp
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from qgraph.errors import QGraphError, RunError
from qgraph.policy import load_policy
from tests.harness.parity_run import (
    ENGINES,
    RATE,
    STEPS,
    Case,
    OneProcess,
    Step,
    run_processes,
    work,
)

ROUNDING = 2.0**-24  # of float32, relative
DRAWS = 4  # how often a run is disturbed to see how far roundings reach


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the processes are from one process, over all steps.

    `loss` is the largest difference of a process's loss, and `loss_bound` what it may be; `update` is
    how much of its bound the largest difference of an updated weight takes.
    """

    engine: str
    policy: str
    world: int
    steps: int
    loss: float
    loss_bound: float
    update: float

    @property
    def holds(self) -> bool:
        """Whether both are within their bounds."""
        return self.loss <= self.loss_bound and self.update <= 1


def measure(case: Case) -> Parity:
    """Run `case` on its processes; hold each step against one process, from the same weights.

    Data parallel (ddp, fsdp): one process takes each part of the batch in turn, with that process's
    random bits. Losses must be equal, bit for bit. Gradients of N parts are summed in another order: an
    updated weight may differ by RATE / N * sum |g| * 2 (N + 1) u + 2 u |w|, u = 2^-24.

    Tensor parallel: sums of split products are taken in another order, which moves them by at most
    K u |x| |w|; behind a quantizer that can turn a code. One process is run with every such sum moved by
    that much, at random signs, four times. Twice the most that losses and updates move then is the
    bound. Under stochastic rounding the bits of split tensors are others: other seeds count too.

    Raises: RunError if a process fails or does not end.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_processes(case, folder, work, case.world)
        run_processes(case, folder, _judge, 1)
        return Parity(**json.loads((folder / "parity.json").read_text()))


def _judge(_rank: int, case: Case, folder: Path) -> None:
    torch.set_num_threads(1)
    steps = [Step(**step) for step in torch.load(folder / STEPS)]
    alone = OneProcess(case)
    check = _tensor_parallel if case.engine == "tp" else _data_parallel
    found = [check(alone, number, step, case) for number, step in enumerate(steps)]
    losses, bounds, updates = zip(*found, strict=True)
    parity = Parity(
        engine=case.engine,
        policy=case.policy.name,
        world=case.world,
        steps=case.steps,
        loss=max(losses),
        loss_bound=max(bounds),
        update=max(updates),
    )
    (folder / "parity.json").write_text(json.dumps(asdict(parity)))


def _data_parallel(
    alone: OneProcess, number: int, step: Step, case: Case
) -> tuple[float, float, float]:
    losses, gradients = alone.step(number, step.before)
    loss = max(abs(a - b) for a, b in zip(losses, step.losses, strict=True))
    used, count = 0.0, len(gradients)
    for name, before in step.before.items():
        parts = torch.stack([found[name] for found in gradients]).double()
        want = before.double() - RATE * parts.mean(0)
        size = RATE * parts.abs().mean(0)
        bound = size * 2 * (count + 1) * ROUNDING + 2 * ROUNDING * before.abs()
        off = (step.after[name].double() - want).abs()
        used = max(used, float(torch.where(off > 0, off / bound, 0.0).max()))
    return loss, 0.0, used


def _tensor_parallel(
    alone: OneProcess, number: int, step: Step, case: Case
) -> tuple[float, float, float]:
    (loss,), (gradient,) = alone.step(number, step.before)
    moved_losses, moved_updates = [0.0], [0.0]
    for draw in range(DRAWS):
        seed = 7919 * (draw + 1) + number if case.policy.stochastic else None
        with alone.disturbed(draw):
            (other,), (turned,) = alone.step(number, step.before, seed)
        moved_losses.append(abs(other - loss))
        moved_updates.append(_distance(turned, gradient))
    found = {n: (step.before[n] - step.after[n]) / RATE for n in gradient}
    # What the step wrote is rounded to the weights' precision.
    written = {n: step.before[n].abs() * 2 * ROUNDING / RATE for n in gradient}
    least = _norm(written) / _norm(gradient)
    off = max(abs(part - loss) for part in step.losses)
    bound = 2 * max(moved_losses) + 4 * ROUNDING * abs(loss)
    return off, bound, _distance(found, gradient) / (2 * max(moved_updates) + least)


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return _norm({name: a[name] - b[name] for name in b}) / _norm(b)


def _norm(values: dict[str, Tensor]) -> float:
    return float(torch.stack([v.double().square().sum() for v in values.values()]).sum().sqrt())


def main(
    world: Annotated[str, typer.Option(help="Numbers of processes, with commas.")] = "2",
    engine: Annotated[str, typer.Option(help="ddp, fsdp, tp.")] = "ddp,fsdp,tp",
    policy: Annotated[
        str, typer.Option(help="Recipes or policy files, with commas.")
    ] = "high,nvfp4,nvfp4_naive,fp8,mxfp8,int8",
    steps: Annotated[int, typer.Option(min=1)] = 4,
    layers: Annotated[int, typer.Option(min=1, help="Blocks of the model.")] = 2,
    codegen: Annotated[bool, typer.Option("--codegen", help="Compile with Inductor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a small Llama on several gloo processes and on one, and print how far apart they are.

    It exits 1 if anything is out of its bound. JSON: a list with keys engine, policy, world, steps, loss,
    loss_bound, update (share of its bound), holds.

    Example: python -m tests.harness.parity --world 2,4 --engine ddp,fsdp,tp
    """
    try:
        worlds = [_whole(text) for text in world.split(",")]
        engines = [_engine(text.strip()) for text in engine.split(",")]
        policies = [load_policy(text.strip()) for text in policy.split(",")]
        found = []
        if not as_json:
            sys.stdout.write(
                f"{'engine':6}  {'processes':>9}  {'policy':12}  {'loss off by':>11}  {'bound':>8}  "
                f"{'update':>8}\n"
            )
        for chosen in engines:
            for count in worlds:
                for wanted in policies:
                    case = Case(
                        engine=chosen,
                        policy=wanted,
                        world=count,
                        steps=steps,
                        codegen=codegen,
                        layers=layers,
                    )
                    found.append(measure(case))
                    if not as_json:
                        _print(found[-1])
    except QGraphError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    holds = all(one.holds for one in found)
    if as_json:
        rows = [{**asdict(one), "holds": one.holds} for one in found]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        sys.stdout.write(
            f"{steps} steps each, from the same weights as one process; update is the share of its bound "
            f"that the\nlargest difference of a weight takes: {'all hold' if holds else 'NOT all hold'}\n"
        )
    raise typer.Exit(0 if holds else 1)


def _print(found: Parity) -> None:
    said = "bitwise" if found.loss_bound == 0 else f"{found.loss_bound:.1e}"
    sys.stdout.write(
        f"{found.engine:6}  {found.world:9}  {found.policy:12}  {found.loss:11.1e}  {said:>8}  "
        f"{found.update:8.2f}{'' if found.holds else '  OUT OF BOUND'}\n"
    )
    sys.stdout.flush()


def _whole(text: str) -> int:
    if not text.strip().isdigit() or not 1 < int(text) <= 64:
        raise RunError(f"--world {text}: not a number of processes, 2 to 64", "--world 2,4")
    return int(text)


def _engine(text: str) -> str:
    if text not in ENGINES:
        raise RunError(f"unknown engine '{text}'", f"use some of: {','.join(ENGINES)}")
    return text


if __name__ == "__main__":
    typer.run(main)
