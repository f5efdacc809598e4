"""qgraph train: one model, one text, a policy beside its baseline."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from typing import Annotated, Any

import typer

from qgraph.policy import load_policy
from qgraph.tools.screen import print_json, progress, width


def train(
    model: Annotated[str, typer.Argument(help="A causal language model, named as for convert.")],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    baseline: Annotated[str, typer.Option(help="The policy to compare with.")] = "high",
    text: Annotated[
        str | None, typer.Option(help="A text file; without it, Python's own library sources.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="A directory to write: losses, plot, both trained models.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 250,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = 128,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and rounding.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bf16 autocast.")] = False,
    target: Annotated[
        str,
        typer.Option(help="emulate; native (products on codes, where that pays); native-always."),
    ] = "emulate",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train MODEL under POLICY and under BASELINE, same seeds and data order, and compare.

    JSON keys: model, policy, baseline, steps, tokens_per_step, losses (policy -> [[step, loss], ...], the
    mean training loss since the previous point, nats per token), held_out (policy -> loss),
    gap_percent (held-out loss above the baseline's), step_ratio (median step over the baseline's),
    state_bytes (policy -> optimizer state -> bytes).
    """
    policies = [load_policy(policy), load_policy(baseline)]
    if policies[0].name == policies[1].name:  # both have their own place in what is written
        policies[1] = replace(policies[1], name=f"{policies[1].name}-baseline")
    with ExitStack() as stack, progress(50) as step:
        step("loading torch")
        import transformers

        from qgraph.backend.artifact import new_directory
        from qgraph.backend.jit import check_target
        from qgraph.backend.measure import alternate, training_step
        from qgraph.training.compare import Settings, gap_percent, plot_losses, train_each
        from qgraph.training.text import Windows, read_text, tokenize

        chosen = check_target(target)
        transformers.utils.logging.disable_progress_bar()
        folder = stack.enter_context(new_directory(out)) if out is not None else None
        ids = tokenize(read_text(text), model, _vocabulary(model))
        settings = Settings(
            steps=steps, batch=batch, length=length, rate=rate, seed=seed, bf16=bf16, target=chosen
        )
        if as_json:  # the coverage tables are for people; stdout is for the JSON alone
            stack.enter_context(redirect_stdout(sys.stderr))
        runs = train_each(model, policies, ids, settings, step)
        step("timing both, alternating")
        rows = Windows(ids, length)
        device = next(runs[0].model.parameters()).device
        inputs: dict[str, Any] = {
            key: rows._rows[:batch].to(device) for key in ("input_ids", "labels")
        }
        times = alternate([training_step(run.model.train(), inputs) for run in runs], rounds=9)
        result = {
            "model": model,
            "policy": runs[0].policy,
            "baseline": runs[1].policy,
            "steps": steps,
            "tokens_per_step": batch * length,
            "losses": {run.policy: run.losses for run in runs},
            "held_out": {run.policy: run.held_out for run in runs},
            "gap_percent": gap_percent(*runs),
            "step_ratio": times[0] / times[1],
            "state_bytes": {run.policy: run.states for run in runs},
        }
        if folder is not None:
            (folder / "losses.json").write_text(
                json.dumps(result, indent=1) + "\n", encoding="utf-8"
            )
            plot_losses(runs, folder / "loss.png")
            for run in runs:
                run.model.save_pretrained(folder / run.policy)
    if as_json:
        print_json(result)
    else:
        _print(result, runs, out)


def _vocabulary(model: str) -> int:
    from qgraph.backend.models import load_config

    return int(load_config(model).get_text_config().vocab_size)


def _print(result: dict[str, Any], runs: list[Any], out: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, title=f"training loss, {result['model']}", title_justify="left"
    )
    for name in ("step", *(run.policy for run in runs), "gap"):
        table.add_column(name, justify="right")
    points = list(zip(*(run.losses for run in runs), strict=True))
    for (number, first), (_, second) in points[:: max(1, len(points) // 10)]:
        table.add_row(
            str(number), f"{first:.4f}", f"{second:.4f}", f"{100 * (first - second) / second:+.2f}%"
        )
    first, second = (run.held_out for run in runs)
    table.add_row(
        "held-out", f"{first:.4f}", f"{second:.4f}", f"{result['gap_percent']:+.2f}%", style="bold"
    )
    Console(file=sys.stdout, width=width()).print(table)
    sys.stdout.write(
        f"step time: {result['step_ratio']:.2f} of {result['baseline']}'s, medians of alternating steps\n"
    )
    sizes = [sum(states.values()) for states in result["state_bytes"].values()]
    if sizes[0] != sizes[1]:
        sys.stdout.write(
            f"optimizer states: {sizes[0] / 1e6:.2f} MB, {result['baseline']}'s {sizes[1] / 1e6:.2f} MB "
            f"({sizes[0] / sizes[1]:.3f})\n"
        )
    if out:
        sys.stdout.write(f"wrote {out}: loss.png, losses.json and both trained models\n")
