"""qgraph bench: what a policy costs, beside plain Inductor, other tools, and as a model grows."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from qgraph.errors import ModelError, RunError
from qgraph.policy import Policy, load_policy
from qgraph.tools.show.screen import print_json, progress, wrap
from qgraph.tools.show.tables import PLAIN, Table, below, check_style, draw, print_table

Say = Callable[[str], None]


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="As for convert; several make a table. Default: preset:bench-llama."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy file or a recipe's name; several make a table. Default: nvfp4."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="emulate; native (products on codes, where that pays); native-always."),
    ] = "emulate",
    batch: Annotated[int, typer.Option(min=1)] = 4,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 256,
    rounds: Annotated[
        int, typer.Option(min=1, help="Alternating rounds; medians are printed.")
    ] = 21,
    telemetry: Annotated[
        int, typer.Option(min=0, help="Also time telemetry every so many steps; 0: leave it out.")
    ] = 0,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also time torchao's emulation and naive fake quant.")
    ] = False,
    table: Table = PLAIN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a training step under POLICY and under plain Inductor, alternating in one process.

    For example: qgraph bench --policy nvfp4 --telemetry 100

    With several models, one line for each: qgraph bench --model preset:bench-llama,layers=8 --model
    preset:bench-llama,layers=16,hidden=256

    With several policies, one line for each: qgraph bench --policy nvfp4 --policy int8 --target native

    JSON keys: model, policy, target, lowering (how many products run how), kernels (how many operands
    are quantized by what), products, device, tokens, rounds; plain and qgraph, each with first_call_s,
    median_step_s, steps_s, peak_memory_bytes (of one step, above what was held before it); ratios with
    first_call, step (the median of each round's own), step_quartiles, peak_memory; pass_s, the time
    spent in qgraph's passes, and pass_share, of its first call; with --telemetry also telemetry: every,
    idle and look (steps without and with a look at every quantizer, over qgraph's), overhead (a share
    of qgraph's step, when one step of `every` looks); with --peers also peers: by name, ratios as
    above, or skipped with the reason. With several models or policies: models, a list of these.
    """
    check_style(table, json=as_json)
    chosen = [load_policy(one) for one in policy or ["nvfp4"]]
    if len(chosen) > 1 and (telemetry or peers):
        raise RunError("several policies are timed beside plain alone", "give one --policy")
    names = model or ["preset:bench-llama"]
    results = []
    with progress(len(names) * (rounds + len(chosen) + 3)) as step:
        for name in names:
            step("loading torch" if len(names) == 1 else name)
            results += _timed(name, chosen, target, batch, length, rounds, telemetry, peers, step)
    if as_json:
        print_json(results[0] if len(results) == 1 else {"models": results})
    elif len(results) == 1:
        _print_one(results[0], table)
    elif len(chosen) == 1:
        _print_many(results, table)
    else:
        for name in names:
            _print_policies([result for result in results if result["model"] == name], table)


def _timed(
    model: str, policies: Sequence[Policy], target: str, batch: int, length: int, rounds: int,
    telemetry: int, peers: bool, say: Say,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one model's times under each policy, as --json gives them."""
    import torch

    from qgraph.doors import check_target, compile, coverage
    from qgraph.models import example_inputs, load_model
    from qgraph.tools.timing import Timing, over, time_steps, training_step

    torch.compiler.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = load_model(model).to(device)
    inputs = example_inputs(plain, batch, length)
    with torch.no_grad():
        plain(**inputs)  # some models set themselves up in their first call
    others, skipped = _peers(plain) if peers else ({}, {})
    quantized = {
        f"{policy.name}, policy {number}": compile(
            copy.deepcopy(plain), policy, target=check_target(target)
        )
        for number, policy in enumerate(policies, 1)
    }
    steps = {"plain": training_step(plain, inputs)}
    steps |= {name: training_step(one, inputs) for name, one in quantized.items()}
    steps |= {name: training_step(other, inputs) for name, other in others.items()}
    if telemetry:
        observed = compile(copy.deepcopy(plain), policies[0], target=check_target(target))
        steps |= _looking(observed, training_step(observed, inputs))
    plain.compile()
    times = time_steps(steps, rounds, say)
    first = times["plain"]

    def ratios(time: Timing) -> dict[str, Any]:
        quartiles = over(time.steps, first.steps)
        return {
            "first_call": time.first_call / first.first_call,
            "step": quartiles[1],
            "step_quartiles": quartiles,
            "peak_memory": time.peak_memory / max(1, first.peak_memory),
        }

    results = []
    for policy, (name, compiled) in zip(policies, quantized.items(), strict=True):
        report, second = coverage(compiled), times[name]
        result: dict[str, Any] = {
            "model": model,
            "policy": policy.name,
            "target": target,
            "lowering": dict(Counter(e.lowering for e in report.entries if e.lowering)),
            "kernels": dict(
                Counter(o.kernel for e in report.quantized for o in e.operands if o.kernel)
            ),
            "products": len(report.entries),
            "device": device,
            "tokens": batch * length,
            "rounds": rounds,
            "plain": _figures(first),
            "qgraph": _figures(second),
            "ratios": ratios(second),
            "pass_s": report.pass_seconds,
            "pass_share": report.pass_seconds / second.first_call,
        }
        if telemetry:
            idle, look = (over(times[name].steps, second.steps)[1] for name in ("idle", "look"))
            overhead = ((telemetry - 1) * idle + look) / telemetry - 1
            result["telemetry"] = {
                "every": telemetry, "idle": idle, "look": look, "overhead": overhead
            }  # fmt: skip
        if peers:
            result["peers"] = {name: ratios(times[name]) for name in others} | skipped
        results.append(result)
    return results


def _figures(time: Any) -> dict[str, Any]:
    return {
        "first_call_s": time.first_call,
        "median_step_s": time.median,
        "steps_s": time.steps,
        "peak_memory_bytes": time.peak_memory,
    }


def _peers(plain: Any) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Return a copy of the model for each peer, and why a peer has none."""
    from qgraph.tools.peers import PEERS

    found, skipped = {}, {}
    for name, prepare in PEERS.items():
        try:
            found[name] = prepare(copy.deepcopy(plain))
        except ModelError as error:
            skipped[name] = {"skipped": error.problem}
    return found, skipped


def _looking(model: Any, run: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """Return a step that could look at every quantizer and does not, and one that does."""
    from qgraph.doors import coverage, enter_stage
    from qgraph.ops import make_recorder

    number, recorder = make_recorder()
    enter_stage(model, coverage(model).policy, (number, False))

    def look() -> None:
        recorder.due = True
        run()
        recorder.due = False
        recorder.clear()

    return {"idle": run, "look": look}


def _print_one(result: Mapping[str, Any], style: str = PLAIN) -> None:
    from qgraph.passes import fallback_lines

    first, second, ratios = (result[key] for key in ("plain", "qgraph", "ratios"))
    rows = []
    for label, key, ratio, factor, form in (
        ("first call", "first_call_s", "first_call", 1.0, ".1f"),
        (f"step, median of {result['rounds']}", "median_step_s", "step", 1e3, ".0f"),
        ("peak memory of a step", "peak_memory_bytes", "peak_memory", 2**-20, ".0f"),
    ):
        unit = {1.0: "s", 1e3: "ms"}.get(factor, "MiB")
        cells = [f"{factor * side[key]:{form}} {unit}" for side in (first, second)]
        rows.append((label, *cells, f"{ratios[ratio]:.2f}"))
    title = f"{result['model']}, {result['tokens']} tokens, {result['device']}"
    _print_table(title, ("", "plain", result["policy"], "ratio"), rows, style)
    below(style, _lines_below(result, fallback_lines(Counter(result["kernels"]).elements())))
    if "peers" in result:
        everyone = {f"qgraph {result['policy']}": ratios} | result["peers"]
        timed = {name: found for name, found in everyone.items() if "step" in found}
        rows = [
            (name, *(f"{found[key]:.2f}" for key in ("step", "first_call", "peak_memory")))
            for name, found in sorted(timed.items(), key=lambda item: item[1]["step"])
        ]
        title = "over plain Inductor"
        print_table([""])
        _print_table(title, ("", "step", "first call", "peak memory"), rows, style)
        left = everyone.keys() - timed.keys()
        below(style, [f"{name}: not run: {everyone[name]['skipped']}" for name in left])


def _lines_below(result: Mapping[str, Any], fallbacks: Iterable[str]) -> Iterator[str]:
    low, _, high = result["ratios"]["step_quartiles"]
    yield f"step: median of the rounds' own ratios, half of them {low:.2f} to {high:.2f}"
    for lowering, count in result["lowering"].items():
        yield f"{count} products: {lowering}"
    yield from fallbacks
    yield f"qgraph's passes: {result['pass_s']:.2f} s, {100 * result['pass_share']:.1f}% of its first call"
    if "telemetry" in result:
        found = result["telemetry"]
        yield (
            f"telemetry: a step that looks takes {found['look']:.2f} of one without telemetry, any other "
            f"{found['idle']:.3f}; every {found['every']} steps that is "
            f"{100 * found['overhead']:+.1f}% of step time"
        )


def _print_many(results: Sequence[Mapping[str, Any]], style: str = PLAIN) -> None:
    """Print a line for each model: what grows, and what stays in proportion."""
    rows = []
    for result in results:
        name, _, size = result["model"].partition(",")
        rows.append((
            size or name,
            str(result["products"]),
            f"{result['qgraph']['first_call_s']:.0f} s",
            f"{1e3 * result['pass_s']:.0f} ms",
            f"{1e3 * result['pass_s'] / max(1, result['products']):.1f} ms",
            *(f"{result['ratios'][key]:.2f}" for key in ("first_call", "step", "peak_memory")),
        ))  # fmt: skip
    first = results[0]
    model = first["model"].partition(",")[0]
    title = f"{model}, {first['policy']}, {first['tokens']} tokens, {first['device']}"
    names = ("", "sites", "first call", "passes", "a site", "first /", "step /", "mem. /")
    _print_table(title, names, rows, style)
    below(style, ["/: over plain Inductor. A site is one product, passes are qgraph's own"])


def _print_policies(results: Sequence[Mapping[str, Any]], style: str = PLAIN) -> None:
    """Print a line for plain and for each policy; then which are faster than plain, and what runs how."""
    first = results[0]
    rows = [("plain", *_cells(first["plain"]), "", "")]
    rows += [
        (
            result["policy"],
            *_cells(result["qgraph"]),
            *(f"{result['ratios'][key]:.2f}" for key in ("step", "peak_memory")),
        )
        for result in results
    ]
    title = f"{first['model']}, {first['tokens']} tokens, {first['device']}"
    names = (
        "",
        "first call",
        f"step, median of {first['rounds']}",
        "step / plain",
        "memory / plain",
    )
    _print_table(title, names, rows, style)
    lines: list[str] = []
    for result in results:
        (low, _, high), policy = result["ratios"]["step_quartiles"], result["policy"]
        faster = (
            f"{policy}: faster than plain here, half of the rounds {low:.2f} to {high:.2f} of it"
        )
        lines += [faster] if high < 1 else []
        lines += [f"{policy}: {n} products: {how}" for how, n in result["lowering"].items()]
    below(style, [part for line in lines for part in wrap(line, "  ")])


def _cells(figures: Mapping[str, Any]) -> tuple[str, str]:
    return f"{figures['first_call_s']:.1f} s", f"{1e3 * figures['median_step_s']:.0f} ms"


def _print_table(
    title: str, names: Sequence[str], rows: Sequence[Sequence[str]], style: str
) -> None:
    below(style, [title])
    print_table(draw(names, rows, style, right=names[1:]))
