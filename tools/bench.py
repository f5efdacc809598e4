"""qgraph bench: what a policy costs, beside plain Inductor."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from typing import Annotated, Any

import typer

from qgraph.policy import load_policy
from qgraph.tools.screen import print_json, progress, width


def bench(
    model: Annotated[
        str, typer.Option(help="As for convert; preset:bench-llama is the model the README quotes.")
    ] = ("preset:bench-llama"),
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    target: Annotated[
        str,
        typer.Option(help="emulate; native (products on codes, where that pays); native-always."),
    ] = "emulate",
    batch: Annotated[int, typer.Option(min=1)] = 4,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 256,
    rounds: Annotated[
        int, typer.Option(min=1, help="Alternating rounds; medians are printed.")
    ] = 9,
    telemetry: Annotated[
        int, typer.Option(min=0, help="Also time telemetry every so many steps; 0: leave it out.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a training step under POLICY and under plain Inductor, alternating in one process.

    For example: qgraph bench --policy nvfp4 --telemetry 100

    JSON keys: model, policy, target, lowering (how many products run how), device, tokens, rounds;
    plain and qgraph, each with first_call_s, median_step_s, steps_s, peak_memory_bytes (of one step,
    above what was held before it); ratios with first_call, step, peak_memory; pass_s, the time spent
    in qgraph's passes, and pass_share, of its first call; with --telemetry also telemetry: every, idle
    and look (steps without and with a look at every quantizer, over qgraph's), overhead (a share of
    qgraph's step, when one step of `every` looks).
    """
    chosen = load_policy(policy)
    with progress(rounds + 4) as step:
        step("loading torch")
        import torch

        from qgraph.backend.examples import example_inputs
        from qgraph.backend.jit import check_target, compile, coverage, enter_stage
        from qgraph.backend.measure import measure, training_step
        from qgraph.backend.models import load_model
        from qgraph.ops.observe import make_recorder

        device = "cuda" if torch.cuda.is_available() else "cpu"
        plain = load_model(model).to(device)
        inputs = example_inputs(plain, batch, length)
        with torch.no_grad():
            plain(**inputs)  # some models set themselves up in their first call
        quantized = compile(copy.deepcopy(plain), chosen, target=check_target(target))
        plain.compile()
        steps = {"plain": training_step(plain, inputs), "qgraph": training_step(quantized, inputs)}
        if telemetry:
            observed = compile(copy.deepcopy(plain), chosen, target=check_target(target))
            number, recorder = make_recorder()
            enter_stage(observed, coverage(observed).policy, (number, False))
            steps["idle"] = training_step(observed, inputs)

            def look() -> None:
                recorder.due = True
                steps["idle"]()
                recorder.due = False
                recorder.clear()

            steps["look"] = look
        times = measure(steps, rounds, step)
    first, second = times["plain"], times["qgraph"]
    extra = {}
    if telemetry:
        idle, looks = (times.pop(name).median / second.median for name in ("idle", "look"))
        overhead = ((telemetry - 1) * idle + looks) / telemetry - 1
        extra["telemetry"] = {"every": telemetry, "idle": idle, "look": looks, "overhead": overhead}
    passes = coverage(quantized).pass_seconds
    share = passes / second.first_call
    result: dict[str, Any] = {
        "model": model,
        "policy": chosen.name,
        "target": target,
        "lowering": dict(Counter(e.lowering for e in coverage(quantized).entries if e.lowering)),
        "device": device,
        "tokens": batch * length,
        "rounds": rounds,
        **{
            name: {
                "first_call_s": time.first_call,
                "median_step_s": time.median,
                "steps_s": time.steps,
                "peak_memory_bytes": time.peak_memory,
            }
            for name, time in times.items()
        },
        "ratios": {
            "first_call": second.first_call / first.first_call,
            "step": second.median / first.median,
            "peak_memory": second.peak_memory / max(1, first.peak_memory),
        },
        "pass_s": passes,
        "pass_share": share,
        **extra,
    }
    if as_json:
        print_json(result)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        title=f"{model}, {batch * length} tokens, {device}",
        title_justify="left",
    )
    for name, kind in (
        ("", "left"),
        ("plain", "right"),
        (chosen.name, "right"),
        ("ratio", "right"),
    ):
        table.add_column(name, justify=kind)  # type: ignore[arg-type]
    for label, one, two, unit, form in (
        ("first call", first.first_call, second.first_call, "s", ".1f"),
        (f"step, median of {rounds}", 1e3 * first.median, 1e3 * second.median, "ms", ".0f"),
        (
            "peak memory of a step",
            first.peak_memory / 2**20,
            second.peak_memory / 2**20,
            "MiB",
            ".0f",
        ),
    ):
        table.add_row(
            label, f"{one:{form}} {unit}", f"{two:{form}} {unit}", f"{two / max(one, 1e-9):.2f}"
        )
    Console(file=sys.stdout, width=width()).print(table)
    for lowering, count in result["lowering"].items():
        sys.stdout.write(f"{count} products: {lowering}\n")
    sys.stdout.write(f"qgraph's passes: {passes:.2f} s, {100 * share:.1f}% of its first call\n")
    if telemetry:
        sys.stdout.write(
            f"telemetry: a step that looks takes {looks:.2f} of one without telemetry, any other "
            f"{idle:.3f}; every {telemetry} steps that is {100 * overhead:+.1f}% of step time\n"
        )
