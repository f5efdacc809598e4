"""qgraph cost: FLOPs, bytes, and the time and memory a device should take, from shapes alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from qgraph.policy import ROLES, load_policy
from qgraph.tools.show.amounts import bytes_text, count_text
from qgraph.tools.show.screen import print_json, progress, width
from qgraph.tools.show.tables import PLAIN, Table, below, check_style, draw, print_table

_COLUMNS = ("product", "formats", "runs as", "count", "FLOPs", "share", "ms")


def cost(
    model: Annotated[
        str,
        typer.Argument(
            help="As for convert; only its config is read. Also preset:llama-7b, llama3-8b, llama3-70b."
        ),
    ],
    policy: Annotated[str, typer.Option(help="A policy file or a recipe's name.")] = "nvfp4",
    device: Annotated[str, typer.Option(help="a100, h100, b200, rtx5090 or mi355x.")] = "b200",
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step, on one device.")] = 1,
    length: Annotated[
        int, typer.Option("--length", "--seq", min=1, help="Tokens per sequence.")
    ] = 4096,
    speeds: Annotated[
        str, typer.Option(help="Speeds for the relative cost; bf16 is 1.")
    ] = "fp8=2,fp4=4",
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Part of the matrix peak that is reached.")
    ] = 0.7,
    whole: Annotated[
        bool, typer.Option("--whole", help="Capture every block, also where all are alike.")
    ] = False,
    table: Table = PLAIN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what POLICY costs MODEL on a device: FLOPs by product, bytes, predicted time and memory.

    For example: qgraph cost preset:llama-7b --policy nvfp4 --device b200 --batch 2 --length 4096

    No weights are loaded and nothing runs: the step is captured from shapes. Products run as the target
    native runs them on such a device; what its matrix unit could multiply besides is said apart. What
    is assumed is printed. JSON keys: model, policy, device, batch, length, parameters, blocks, captured,
    flops, lines, split, relative, speeds, memory (bytes), time (seconds), speedup, products_speedup,
    unit (time, memory, speedup and products_speedup if the matrix unit multiplied all that it takes),
    fits, assumptions, unused_rules.
    """
    check_style(table, json=as_json)
    chosen = load_policy(policy)
    with progress(3) as step:
        step("loading torch")
        import transformers

        from qgraph.ops import find_device
        from qgraph.policy import unused_rules, why_unused
        from qgraph.predict import Assumptions, cost, outline_step, plan_step, read_speeds

        chip, relative = find_device(device), read_speeds(speeds)
        transformers.utils.logging.disable_progress_bar()
        step("capturing the training step from shapes")
        outline = outline_step(model, chosen, batch=batch, length=length, whole=whole)
        step("counting")
        plans = plan_step(outline, chosen)
        assumed = Assumptions(matrix_efficiency=efficiency)
        sites = outline.sites
        unused = [f"{r.text}: {why_unused(r, sites)}" for r in unused_rules(chosen, sites)]
        found = {
            "model": model,
            "policy": chosen.name,
            "device": chip.name,
            "batch": batch,
            "length": length,
            "parameters": sum(outline.parameters.values()),
            "blocks": outline.blocks,
            "captured": outline.captured,
            **cost(outline, plans, chip, relative, assumed),
            "unused_rules": unused,
        }
    if as_json:
        print_json(found)
    else:
        _print(found, chip.title, chip.source, table)


def _print(found: dict[str, Any], title: str, source: str, style: str) -> None:
    tokens = count_text(found["batch"] * found["length"])
    head = f"{found['model']}, {count_text(found['parameters'])} parameters, {tokens} tokens a step"
    below(style, [*_wrapped([f"{head}, {title}"]), ""])
    products, reasons = _products(found)
    print_table([*draw(_COLUMNS, products, style, right=_COLUMNS[3:]), ""])
    below(style, [*_wrapped(reasons), ""])
    for name, key, show in (("time, ms", "time", _milliseconds), ("memory", "memory", bytes_text)):
        sides = {"high": found[key]["high"], found["policy"]: found[key]["policy"]}
        print_table([*_sums(name, sides, show, style), ""])
    below(style, _wrapped(_rest(found, source)))


def _rest(found: dict[str, Any], source: str) -> list[str]:
    lines = [
        (
            f"predicted speed-up of a step {found['speedup']:.2f}, of its products alone "
            f"{found['products_speedup']:.2f}"
        ),
    ]
    lines += _could(found)
    if not found["fits"]:
        lines.append(f"warning: this does not fit one {found['device']}; time is as if it did")
    split = ", ".join(f"{part} {100 * share:.1f}%" for part, share in found["split"].items())
    speeds = ", ".join(f"{kind} {speed:g}" for kind, speed in found["speeds"].items())
    shares = ", ".join(f"{name} {100 * part:.1f}%" for name, part in found["relative"].items())
    lines += [
        f"forward FLOPs of the blocks: {split}",
        f"cost of the blocks' products over bf16, at speeds {speeds}: {shares}",
        *(f"warning: {text}" for text in found["unused_rules"]),
        *_assumptions(found, source),
    ]
    return lines


def _wrapped(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, width(), subsequent_indent="    ", break_on_hyphens=False)


def _products(found: dict[str, Any]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the table of products, and how much is multiplied as it is for each reason."""
    rows: list[tuple[str, ...]] = []
    reasons: dict[str, float] = {}
    for part in dict.fromkeys(line["part"] for line in found["lines"]):
        for role in ROLES:
            for line in sorted(found["lines"], key=lambda line: -line["flops"]):
                if (line["part"], line["role"]) != (part, role):
                    continue
                share = line["flops"] / (found["flops"] or 1)
                rows.append((
                    f"{part} {role}", line["formats"], line["runs_as"], str(line["count"]),
                    count_text(line["flops"]), f"{100 * share:.1f}%", _milliseconds(line["seconds"]),
                ))  # fmt: skip
                reason = line["reason"]
                reasons[reason] = reasons.get(reason, 0.0) + share
    why = [
        f"{100 * share:6.1f}%  {reason or 'codes multiplied by the matrix unit'}"
        for reason, share in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    return rows, why


def _could(found: dict[str, Any]) -> list[str]:
    """Say what the matrix unit could multiply and no kernel of qgraph does, or not for less."""
    shares: dict[str, float] = {}
    for line in found["lines"]:
        if line["unit"] != line["runs_as"]:
            how = ", ".join(filter(None, (f"as {line['unit']}", line["unit_reason"])))
            shares[how] = shares.get(how, 0.0) + line["flops"] / (found["flops"] or 1)
    if not shares:
        return []
    could = "; ".join(f"{100 * share:.1f}% {how}" for how, share in shares.items())
    unit = found["unit"]
    step, products = unit["speedup"], unit["products_speedup"]
    then = f"Then the speed-up of a step would be {step:.2f}, of its products alone {products:.2f}"
    return [f"the matrix unit could multiply more than runs so: {could}. {then}"]


def _sums(
    name: str, sides: dict[str, dict[str, float]], show: Callable[[float], str], style: str
) -> list[str]:
    """Return the table of what a step takes, a side in each column, and in all."""
    parts = next(iter(sides.values()))
    rows = [(part, *(show(side[part]) for side in sides.values())) for part in parts]
    rows.append(("in all", *(show(sum(side.values())) for side in sides.values())))
    return draw((name, *sides), rows, style, right=tuple(sides))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _assumptions(found: dict[str, Any], source: str) -> list[str]:
    assumed = found["assumptions"]
    blocks = f"all {found['blocks']} blocks captured"
    if found["captured"] < found["blocks"]:
        blocks = (
            f"{found['captured']} of {found['blocks']} blocks captured, equal ones between repeated"
        )
    return [
        (
            f"assumed: dense peaks of the {source}, {100 * assumed['matrix_efficiency']:.0f}% reached; "
            f"{100 * assumed['bandwidth_efficiency']:.0f}% of bandwidth; nothing overlaps; one device"
        ),
        (
            "assumed: elementwise work fused as well as can be; each operand quantized once, in a pass of "
            "its own, two where a scale needs the whole tensor; attention without causal savings"
        ),
        (
            f"assumed: bf16 weights of {assumed['weight_bytes']} bytes, or their codes where all products "
            f"multiply codes; master weights {assumed['master_bytes']}, gradients "
            f"{assumed['gradient_bytes']}, AdamW {assumed['optimizer_bytes']} bytes; activations as torch's "
            "partitioner keeps them, as codes where nothing but products of codes reads them"
        ),
        f"assumed: {blocks}",
    ]
