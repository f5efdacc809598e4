"""What compiling for a GPU found, as data and as text: a policy beside the same model in bf16."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from qgraph.ops.chips import Chip
from qgraph.passes import make_totals
from qgraph.predict.offline.compile import CompiledStep, Kernel

ASSUMPTIONS = (
    (
        "nothing ran: a kernel takes the longer of its bytes at the peak bandwidth and its operations "
        "at the peak of their kind, which real kernels do not reach; launches, the optimizer and "
        "communication are left out"
    ),
    (
        "a kernel reads and writes each buffer once, and again for each later pass over it; caches "
        "are not counted"
    ),
    "products and attention are taken to move their operands and results once",
    (
        "each generated kernel is compiled with the first configuration Inductor's heuristics list; "
        "its joint-graph pattern matching is left out"
    ),
)
_SHOWN = 16


def comparison(
    model: str, chip: Chip, plain: CompiledStep, quantized: CompiledStep, tokens: int
) -> dict[str, Any]:
    """Return the report as plain data; see `qgraph compile --help` for its keys."""
    device = chip.device
    lowered = Counter(e.lowering for e in quantized.products if e.status == "quantized")
    return {
        "model": model,
        "policy": quantized.policy,
        "target": {
            "name": device.name,
            "title": device.title,
            "arch": device.arch,
            "bandwidth": device.bandwidth,
            "peaks": dict(device.peaks),
            "source": device.source,
        },
        "tokens": tokens,
        "dtype": "bfloat16",
        "parameters": plain.parameters,
        "assumptions": list(ASSUMPTIONS),
        "plain": _step(plain),
        "quantized": _step(quantized),
        "added": {
            "kernels": quantized.launches - plain.launches,
            "bytes": quantized.moved - plain.moved,
        },
        "speedup": plain.seconds / quantized.seconds,
        "products": dict(lowered),
        "coverage": make_totals(quantized.products),
    }


def _step(step: CompiledStep) -> dict[str, Any]:
    kinds: dict[str, float] = {}
    for kernel in step.kernels:
        kind = _kind(kernel)
        kinds[kind] = kinds.get(kind, 0.0) + kernel.count * kernel.work.seconds
    spilling = {k.name for k in step.kernels if k.code is not None and k.code.spills}
    return {
        "step_s": step.seconds,
        "kernels": step.launches,
        "moved_bytes": step.moved,
        "minimum_bytes": step.minimum,
        "spilling_kernels": sorted(spilling),
        "by_kind": dict(kinds),
        "calls": [_call(kernel) for kernel in step.kernels],
    }


def _kind(kernel: Kernel) -> str:
    if kernel.kind == "qgraph":
        return "quantized products" if kernel.work.flops else "quantization"
    if kernel.kind == "triton":
        return "elementwise"
    if not kernel.work.flops:
        return "other"
    return "attention" if "dot_product" in kernel.name else "products"


def _call(kernel: Kernel) -> dict[str, Any]:
    work, code = kernel.work, kernel.code
    return {
        "half": kernel.half,
        "kind": kernel.kind,
        "name": kernel.name,
        "nodes": list(kernel.nodes),
        "module": kernel.place,
        "count": kernel.count,
        "minimum_bytes": work.minimum,
        "moved_bytes": work.moved,
        "flops": work.flops,
        "rate_kind": work.kind,
        "seconds": work.seconds,
        "registers": code.registers if code else None,
        "spill_bytes": code.spills if code else None,
        "shared_bytes": code.shared if code else None,
        "instructions": list(code.instructions) if code else None,
        "note": kernel.note,
    }


def comparison_text(found: dict[str, Any], width: int) -> str:
    """Return `comparison` as text of at most `width` columns."""
    plain, quantized, target = found["plain"], found["quantized"], found["target"]
    lines = textwrap.wrap(
        f"{found['model']} ({found['parameters'] / 1e6:,.1f} million parameters) under {found['policy']} on "
        f"{target['title']} ({target['arch']}), {found['tokens']} tokens a step, bf16",
        width,
    )
    lines += ["", f"{'':26}{'bf16':>12}{found['policy'][:12]:>13}{'ratio':>9}"]
    rows = [("roofline of a step, ms", plain["step_s"] * 1e3, quantized["step_s"] * 1e3, ".3f")]
    rows += [
        (
            f"  {kind}",
            1e3 * plain["by_kind"].get(kind, 0),
            1e3 * quantized["by_kind"].get(kind, 0),
            ".3f",
        )
        for kind in {**plain["by_kind"], **quantized["by_kind"]}
    ]
    rows += [
        ("kernels launched", plain["kernels"], quantized["kernels"], ".0f"),
        ("bytes moved, GB", plain["moved_bytes"] / 1e9, quantized["moved_bytes"] / 1e9, ".3f"),
        ("bytes at least, GB", plain["minimum_bytes"] / 1e9, quantized["minimum_bytes"] / 1e9, ".3f"),
        ("kernels that spill", len(plain["spilling_kernels"]), len(quantized["spilling_kernels"]), ".0f"),
    ]  # fmt: skip
    for name, one, two, form in rows:
        ratio = f"{two / one:.2f}" if one else "-"
        lines.append(f"{name:26}{one:>12{form}}{two:>13{form}}{ratio:>9}")
    lines += ["", *_kernel_lines(quantized["calls"], quantized["step_s"], width), ""]
    extra = quantized["moved_bytes"] / max(1, quantized["minimum_bytes"]) - 1
    tail = [
        (
            f"quantization adds {found['added']['kernels']} kernels and "
            f"{found['added']['bytes'] / 1e9:.3f} GB to a step; all kernels move {100 * extra:.1f}% "
            "more than they must"
        ),
        f"predicted by roofline: {found['speedup']:.2f} times the speed of bf16",
        *(f"{count} quantized products: {how}" for how, count in found["products"].items()),
        *(f"assumed: {text}" for text in found["assumptions"]),
        f"peaks: {target['source']}",
    ]
    for line in tail:
        lines += textwrap.wrap(line, width, subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _kernel_lines(calls: list[dict[str, Any]], whole: float, width: int) -> list[str]:
    """Return one line for each kernel, the longest first; launches of one kernel together."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for call in calls:
        key = (call["half"], call["name"], call["minimum_bytes"], call["flops"])
        row = groups.setdefault(key, {**call, "count": 0, "total": 0.0})
        row["count"] += call["count"]
        row["total"] += call["count"] * call["seconds"]
    rows = sorted(groups.values(), key=lambda row: -row["total"])
    room = max(20, width - 52)
    lines = [
        f"{'kernel':{room}} half {'n':>4} {'share':>6} {'moved/least MB':>15} {'reg':>4} {'spill':>5}  mma"
    ]
    for row in rows[:_SHOWN]:
        name = row["name"].removeprefix("triton_")
        name = name if len(name) <= room else name[: room - 1] + "…"
        size = f"{row['moved_bytes'] / 1e6:.1f}/{row['minimum_bytes'] / 1e6:.1f}"
        registers = "-" if row["registers"] is None else row["registers"]
        spills = "-" if row["spill_bytes"] is None else row["spill_bytes"]
        found = [i for i in row["instructions"] or () if "cvt" not in i]
        lines.append(
            f"{name:{room}} {row['half'][:3]}  {row['count']:>4} {100 * row['total'] / whole:>5.1f}% "
            f"{size:>15} {registers:>4} {spills:>5}  {'yes' if found else '-'}"
        )
    if len(rows) > _SHOWN:
        rest = sum(row["total"] for row in rows[_SHOWN:]) / whole
        lines.append(f"and {len(rows) - _SHOWN} more, {100 * rest:.1f}% (--json lists all)")
    return lines


def write_sources(
    folder: Path, found: dict[str, Any], plain: CompiledStep, quantized: CompiledStep
) -> None:
    """Write report.json, and for each of the two steps its programs and its kernels' code."""
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, step in (("plain", plain), ("quantized", quantized)):
        home = folder / name
        (home / "kernels").mkdir(parents=True)
        for file, text in step.sources.items():
            (home / file).write_text(text)
        for kernel in step.kernels:
            for kind, content in (kernel.code.files if kernel.code else {}).items():
                data = content if isinstance(content, bytes) else content.encode()
                (home / "kernels" / f"{kernel.half}_{kernel.name}.{kind}").write_bytes(data)
