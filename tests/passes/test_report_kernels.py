"""A report names what computes each operand, and each fallback with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qgraph.ops import DEVICES, at_hand, find_device, make_recorder
from qgraph.passes import (
    Report,
    Watch,
    names_of,
    read_report,
    report_json,
    report_text,
    run_passes,
)
from qgraph.passes.step import Target
from qgraph.policy import Policy, load_policy_text
from qgraph.predict.offline.retarget import move_to_gpu
from qgraph.predict.offline.standin import standing_in
from tests.passes.graphs import HEAD, Shared, captured, policy

EVERY_PASS = names_of("joint", "lower", "watch")
needs_compiler = pytest.mark.skipif(
    at_hand("cpu").no_compiler is not None, reason="no C++ compiler"
)
EVERY = "  - match: {op: linear}\n    fprop: {input: %s, weight: %s}\n"


def report_on(device: str, chosen: Policy, target: Target = "emulate") -> Report:
    """What a report says of two linear layers compiled for a device."""
    found, report = captured(Shared(64), (64, 64)), Report(policy=chosen)
    if device == "cpu":
        report.add(run_passes(found.step(chosen, target), EVERY_PASS))
        return report
    pytest.importorskip("triton")
    move_to_gpu(found.graph)
    with standing_in(find_device(device)):
        report.add(run_passes(found.step(chosen, target), EVERY_PASS))
    return report


def kernels(report: Report) -> list[str]:
    return [operand.kernel for entry in report.quantized for operand in entry.operands]


@needs_compiler
def test_on_a_cpu_every_format_has_a_kernel_and_nothing_is_said() -> None:
    report = report_on("cpu", policy(EVERY % ("nf4/1x64/fp32", "int8")))
    assert kernels(report) == ["cpu, two passes", "cpu"] * 2
    assert "operands: " not in report_text(report)
    high = [o.kernel for e in report.entries if e.status != "quantized" for o in e.operands]
    assert high
    assert set(high) == {""}


@pytest.mark.parametrize("device", DEVICES)
def test_on_a_gpu_what_runs_the_definition_is_named_with_the_reason(device: str) -> None:
    report = report_on(device, policy(EVERY % ("int8", "fp4")))
    slow = "reference: no triton kernel takes int8/row/fp32"
    assert kernels(report) == [slow, "triton"] * 2
    assert "2 operands: reference (no triton kernel takes int8/row/fp32)" in report_text(report)


@pytest.mark.parametrize(
    ("device", "format", "found"),
    [
        ("h100", "e4m3/tensor/fp32", "triton codes"),
        ("h100", "int8", "reference codes: no triton kernel for codes of int8/row/fp32"),
        ("b200", "fp4", "triton packing"),
        ("b200", "tile", "triton packing"),
        ("h100", "tile", "triton"),
    ],
)
def test_of_native_products_it_names_what_stores_the_codes(
    device: str, format: str, found: str
) -> None:
    report = report_on(device, policy(EVERY % (format, format)), "native-always")
    assert set(kernels(report)) == {found}


@pytest.mark.parametrize(
    ("points", "signs", "found"),
    [
        (16, "te", "triton"),
        (128, "run", "triton, rotated by the reference"),
        (16, "step", "triton; rotated by the reference rotation: no cuda kernels yet"),
    ],
)
def test_a_rotation_without_a_kernel_is_told(points: int, signs: str, found: str) -> None:
    turned = "{format: fp4, transform: t}"
    chosen = load_policy_text(
        HEAD.replace("rules:", f"  t: {{hadamard: {points}, signs: {signs}}}\nrules:")
        + EVERY % (turned, turned)
    )
    report = report_on("h100", chosen)
    assert set(kernels(report)) == {found}
    assert ("operands: triton" in report_text(report)) == (found != "triton")


@needs_compiler
def test_telemetry_looks_at_no_codes_and_says_so() -> None:
    rules = EVERY % ("int8", "int8") + "    wgrad: {input: fp4, grad_output: fp4}\n"
    step = captured(Shared(64), (64, 64)).step(policy(rules), "native-always")
    step.watch = Watch(recorder=(make_recorder()[0], False))
    report = Report(policy=step.policy)
    report.add(run_passes(step, EVERY_PASS))
    assert "telemetry looks at 4 quantized operands; not at 4 of native" in report_text(report, 200)
    assert "telemetry" not in report_text(report_on("cpu", policy(rules), "native-always"))


def test_a_report_is_read_back_with_its_kernels_and_without() -> None:
    chosen = policy(EVERY % ("int8", "fp4"))
    report = report_on("h100", chosen)
    data: dict[str, Any] = json.loads(json.dumps(report_json(report)))
    assert read_report(data, chosen).entries == report.entries
    for product in data["products"]:
        for operand in product["operands"]:
            del operand["kernel"]
    old = read_report(data, chosen)
    assert set(kernels(old)) == {""}
    assert [e.formats for e in old.entries] == [e.formats for e in report.entries]
    assert "operands: " not in report_text(old)
