"""qgraph train: one model, one text, a policy beside its baseline."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qgraph.errors import RunError
from qgraph.policy import check_run, load_policy
from qgraph.tools.show.screen import print_json, progress, width, wrap


def train(
    model: Annotated[str, typer.Argument(help="A causal language model, named as for convert.")],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    baseline: Annotated[str, typer.Option(help="The policy to compare with, or none.")] = "high",
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
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds, from --seed on: the gap's mean and spread.")
    ] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bf16 autocast.")] = False,
    target: Annotated[
        str,
        typer.Option(help="emulate; native (products on codes, where that pays); native-always."),
    ] = "emulate",
    codegen: Annotated[
        bool, typer.Option(help="Compile with Inductor, or run the graph op by op.")
    ] = True,
    timeout: Annotated[
        int, typer.Option(min=1, help="Seconds that processes wait for each other.")
    ] = 600,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Write a checkpoint into --out every so many steps.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, from its last checkpoint."),
    ] = False,
    allow_other_policy: Annotated[
        bool,
        typer.Option("--allow-other-policy", help="Resume under a policy the run did not have."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train MODEL under POLICY and under BASELINE, same seeds and data order, and compare.

    For example: qgraph train preset:tiny-llama --policy nvfp4 --text corpus.txt --seeds 3 --out run

    A policy's schedule runs: its switches are printed as they happen.

    With --save-every N the run can be broken off at any time; --resume then gives the bits of a run that
    never was: qgraph train MODEL --policy nvfp4 --save-every 50 --out RUN, then the same and --resume.

    JSON keys: model, policy, baseline, steps, tokens_per_step, losses (policy -> [[step, loss], ...], the
    mean training loss since the previous point, nats per token), held_out (policy -> loss), state_bytes
    (policy -> optimizer state -> bytes); of the first seed; gap_percent (held-out loss above the
    baseline's, mean over seeds), gap_spread (its standard deviation), seeds (each with seed, held_out,
    gap_percent), step_ratio (median step over the baseline's).
    Without a baseline the gaps, step_ratio and baseline are null.
    """
    if save_every is None and (resume or allow_other_policy):
        raise RunError("--resume needs --save-every", "add --save-every N, as the run was started")
    if save_every is not None and out is None:
        raise RunError("--save-every has no place to write to", "add --out RUN")
    policies = [load_policy(policy), *([] if baseline == "none" else [load_policy(baseline)])]
    for loaded in policies:
        check_run(loaded, steps)
    if (
        len(policies) > 1 and policies[0].name == policies[1].name
    ):  # both have their own place in what is written
        policies[1] = replace(policies[1], name=f"{policies[1].name}-baseline")
    with ExitStack() as stack, progress(50 * seeds) as step:
        step("loading torch")
        import transformers

        from qgraph.doors import check_target, new_directory, write_plan
        from qgraph.training import (
            CHECKPOINTS,
            Settings,
            Store,
            plot_losses,
            rank,
            read_text,
            run_folder,
            text_digest,
            tokenize,
            told_of_lost_processes,
            train_each,
            world_size,
        )

        chosen = check_target(target)
        transformers.utils.logging.disable_progress_bar()
        ids = tokenize(read_text(text), model, _vocabulary(model))
        settings = Settings(
            steps=steps, batch=batch, length=length, rate=rate, seed=seed, bf16=bf16, target=chosen,
            codegen=codegen, timeout=timeout,
        )  # fmt: skip
        folder, store = None, None
        if save_every is not None and out is not None:
            store = Store(
                folder=Path(out).expanduser().absolute() / CHECKPOINTS,
                every=save_every,
                resume=resume,
                allow_other_policy=allow_other_policy,
            )
        if rank():  # the first process speaks and writes for all
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            step = _silent
        elif out is not None and store is not None:
            facts = {
                "model": model, "text": text_digest(ids), "steps": steps, "batch": batch,
                "length": length, "rate": rate, "seed": seed, "seeds": seeds, "bf16": bf16,
                "target": target, "codegen": codegen, "processes": world_size(), "save_every": save_every,
            }  # fmt: skip
            folder = stack.enter_context(run_folder(out, facts, resume=resume))
        elif out is not None:
            folder = stack.enter_context(new_directory(out))
        if as_json:  # the coverage tables are for people; stdout is for the JSON alone
            stack.enter_context(redirect_stdout(sys.stderr))
        again = "start it again, with --resume" if store else "start it again; see --save-every"
        every: list[list[Any]] = []  # of each seed
        with told_of_lost_processes(again):
            for number in range(seed, seed + seeds):
                place = store
                if seeds > 1:
                    step(f"seed {number}")
                    place = store and replace(store, folder=store.folder / f"seed{number}")
                chosen_settings = replace(settings, seed=number)
                # One coverage table of each policy is enough.
                with redirect_stdout(io.StringIO() if number > seed else sys.stdout):
                    every.append(train_each(model, policies, ids, chosen_settings, step, place))
                for run, trained in zip(every[-1], policies, strict=True):
                    if folder is not None:
                        name = run.policy if seeds == 1 else f"{run.policy}-seed{number}"
                        run.model.save_pretrained(folder / name)
                        write_plan(run.model, trained, folder / name)
                    if len(every) > 1:  # the first seed's are timed below
                        run.model = None
        if rank():
            return
        runs = every[0]
        result: dict[str, Any] = {
            "model": model,
            "policy": runs[0].policy,
            "baseline": runs[1].policy if len(runs) > 1 else None,
            "steps": steps,
            "tokens_per_step": batch * length * world_size(),
            "losses": {run.policy: run.losses for run in runs},
            "held_out": {run.policy: run.held_out for run in runs},
            "state_bytes": {run.policy: run.states for run in runs},
            **_compare(every, seed, ids, batch, length, step),
        }
        if folder is not None:
            (folder / "losses.json").write_text(
                json.dumps(result, indent=1) + "\n", encoding="utf-8"
            )
            plot_losses([run for pair in every for run in pair], folder / "loss.png")
    if as_json:
        print_json(result)
    else:
        _print(result, runs, out, target)


def _silent(_text: str) -> None:
    """Say nothing."""


def _compare(
    every: list[list[Any]],
    seed: int,
    ids: Any,
    batch: int,
    length: int,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Return how far apart the two runs of each seed are in loss, and the first seed's in time."""
    from qgraph.tools.timing import alternate, over, training_step
    from qgraph.training import Windows, gap_percent, mean_and_spread

    gaps = [gap_percent(*runs) if len(runs) > 1 else None for runs in every]
    seeds = [
        {
            "seed": seed + i,
            "held_out": {run.policy: run.held_out for run in runs},
            "gap_percent": gaps[i],
        }
        for i, runs in enumerate(every)
    ]
    known = [gap for gap in gaps if gap is not None]
    if not known:
        return {"gap_percent": None, "gap_spread": None, "seeds": seeds, "step_ratio": None}
    step("timing both, alternating")
    rows = Windows(ids, length)
    device = next(every[0][0].model.parameters()).device
    inputs: dict[str, Any] = {key: rows._rows[:batch].to(device) for key in ("input_ids", "labels")}
    times = alternate([training_step(run.model.train(), inputs) for run in every[0]], rounds=9)
    gap, spread = mean_and_spread(known)
    return {
        "gap_percent": gap,
        "gap_spread": spread,
        "seeds": seeds,
        "step_ratio": over(*times)[1],
    }


def _vocabulary(model: str) -> int:
    from qgraph.models import load_config

    return int(load_config(model).get_text_config().vocab_size)


def _print(result: dict[str, Any], runs: list[Any], out: str | None, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    sys.stdout.write(f"training loss, {result['model']}\n")
    table = Table(box=None, pad_edge=False)
    names = [run.policy for run in runs]
    for name in ("step", *names, *(["gap"] if len(runs) > 1 else [])):
        table.add_column(name, justify="right")
    points = list(zip(*(run.losses for run in runs), strict=True))
    every = max(1, len(points) // 10)
    for point in points[(len(points) - 1) % every :: every]:  # the last one too
        table.add_row(str(point[0][0]), *_cells([loss for _, loss in point]))
    many = len(result["seeds"]) > 1
    for entry in result["seeds"]:
        label = f"held-out, seed {entry['seed']}" if many else "held-out"
        table.add_row(label, *_cells([*entry["held_out"].values()]), style="bold")
    Console(file=sys.stdout, width=width()).print(table)
    if len(runs) > 1 and many:
        sys.stdout.write(
            f"gap of held-out loss over {len(result['seeds'])} seeds: {result['gap_percent']:+.2f}% mean, "
            f"{result['gap_spread']:.2f}% standard deviation\n"
        )
    if len(runs) > 1:
        time = f"step time: {result['step_ratio']:.2f} of {result['baseline']}'s, alternating steps"
        if target == "emulate":
            time += (
                ". Emulated: the products are those of high precision, and quantizing comes on top; the "
                "wider a model is, the less it weighs"
            )
        sys.stdout.write("\n".join(wrap(time, "  ")) + "\n")
    sizes = [sum(states.values()) for states in result["state_bytes"].values()]
    if len(sizes) > 1 and sizes[0] != sizes[1]:
        sys.stdout.write(
            f"optimizer states: {sizes[0] / 1e6:.2f} MB, {result['baseline']}'s {sizes[1] / 1e6:.2f} MB "
            f"({sizes[0] / sizes[1]:.3f})\n"
        )
    if out:
        trained = "both trained models" if len(runs) > 1 else "the trained model"
        sys.stdout.write(f"wrote {out}: loss.png, losses.json and {trained}\n")


def _cells(losses: list[float]) -> list[str]:
    gap = [f"{100 * (losses[0] - losses[1]) / losses[1]:+.2f}%"] if len(losses) > 1 else []
    return [*(f"{loss:.4f}" for loss in losses), *gap]
