"""Compiling for a GPU that is not there: what is counted, by hand; what is refused and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from qgraph.compat import fake
from qgraph.doors.decompositions import decompositions
from qgraph.models.shapes import load_shapes
from qgraph.ops import DEVICES, find_device, machine_of
from qgraph.ops.gpu.product import product_launch, why_no_nvfp4
from qgraph.ops.native import limits
from qgraph.policy import load_policy, load_policy_text
from qgraph.predict.offline.codegen import generate
from qgraph.predict.offline.compile import CompiledStep, _Compiler, compile_step
from qgraph.predict.offline.standin import standing_in
from tests.compat.trace import graph_of
from tests.tools.command import run

pytest.importorskip("triton")
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a Llama of four blocks: a config, no weights."""
    return make(tmp_path_factory, 4)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same of one block."""
    return make(tmp_path_factory, 1)


def make(factory: pytest.TempPathFactory, blocks: int) -> str:
    home = factory.mktemp(f"blocks{blocks}")
    LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=blocks,
        num_attention_heads=2, num_key_value_heads=2, architectures=["LlamaForCausalLM"],
    ).save_pretrained(home)  # fmt: skip
    return str(home)


def program(function: Any, *shapes: tuple[int, ...]) -> Any:
    """Return the program Inductor would run on a B200 for a function of bf16 tensors."""
    mode = fake.FakeTensorMode()
    with mode:
        inputs = [torch.empty(shape, device=GPU, dtype=torch.bfloat16) for shape in shapes]
    with mode, standing_in(find_device("b200")):
        module = graph_of(function, decompositions(), inputs)
        return generate(module, backward=False)


def test_bytes_of_three_generated_kernels_by_hand() -> None:
    # Pointwise: two inputs of 1024x512 bf16 and one output.
    (call,) = program(lambda x, y: torch.relu(x) * y, (1024, 512), (1024, 512)).calls
    assert call.minimum == call.moved == 3 * 1024 * 512 * 2
    # A row is short enough to be held: softmax reads it once, 64x256, and writes it.
    (call,) = program(lambda x: torch.softmax(x, -1), (64, 256)).calls
    assert call.minimum == call.moved == 2 * 64 * 256 * 2
    # A row of 65536 is not: a pass finds its largest and its sum, another writes: two reads, one write.
    calls = program(lambda x: torch.softmax(x, -1), (512, 65536)).calls
    assert sum(c.minimum for c in calls) == 2 * 512 * 65536 * 2
    assert sum(c.moved for c in calls) == 3 * 512 * 65536 * 2


def test_few_blocks_stand_for_all_that_are_alike(small: str) -> None:
    plain = load_shapes(small, few=True, policy=load_policy("high"))
    assert (plain.stand_for, plain.size) == ({0: (0,), 1: (1, 2), 3: (3,)}, 4)
    # The recipe keeps the last 15 %, one block of four, high: it is not like the others.
    mixed = load_shapes(small, few=True, policy=load_policy("nvfp4"))
    assert mixed.stand_for == {0: (0,), 1: (1,), 2: (2,), 3: (3,)}


def products(step: CompiledStep) -> int:
    return sum(k.count for k in step.kernels if k.work.flops and "attention" not in k.name)


def test_every_product_of_the_whole_model_is_counted(small: str) -> None:
    step = compile_step(
        small, load_policy("high"), find_device("a100"), batch=1, length=32, machine_code=False
    )
    # 4 blocks of 7 linear layers, and the head: three products each.
    assert products(step) == 3 * (4 * 7 + 1)
    flops = sum(k.count * k.work.flops for k in step.kernels if "attention" not in k.name)
    weights = 4 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 128
    assert flops == 3 * 2 * 32 * weights


NVFP4_ALL = """\
qgraph: 1
name: all
rules:
  - match: {op: linear}
    fprop: {input: nvfp4, weight: nvfp4}
    dgrad: {grad_output: nvfp4, weight: nvfp4}
    wgrad: {input: nvfp4, grad_output: nvfp4}
"""


@pytest.mark.parametrize(
    ("target", "lowering"),
    [
        ("h100", "emulated: no NVFP4 product on a GPU of capability 9.0: it has no FP4 units"),
        ("rtx5090", "native nvfp4"),
    ],
)
def test_a_target_without_the_format_emulates_it_and_says_why(
    single: str, target: str, lowering: str
) -> None:
    policy = load_policy_text(NVFP4_ALL)
    step = compile_step(single, policy, find_device(target), batch=1, length=32, machine_code=False)
    assert {entry.lowering for entry in step.products if entry.status == "quantized"} == {lowering}
    names = {kernel.name for kernel in step.kernels}
    assert ("qgraph_product_kernel" in names) == (target == "rtx5090")
    assert ("qgraph_fake_quant_kernel" in names) == (target != "rtx5090")
    assert products(step) == 3 * (7 + 1)
    if target == "rtx5090":
        # Every operand of a product is read for its largest magnitude once, and packed once.
        packs = sum(k.count for k in step.kernels if k.name == "qgraph_pack_kernel")
        amaxes = sum(k.count for k in step.kernels if k.name == "qgraph_amax_kernel")
        # Inputs: q k v share one, gate and up share one, o, down; 7 weights; 7 gradients; the head.
        assert packs == amaxes == (4 + 7 + 7) + 3


@pytest.mark.full
def test_a_tensor_in_fp8_is_read_once_for_the_codes_of_both_axes(
    single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy_text(NVFP4_ALL.replace("nvfp4", "fp8_tensor"))
    size: dict[str, Any] = {"batch": 1, "length": 32, "machine_code": False}
    small = compile_step(single, policy, find_device("h100"), **size)
    assert {e.lowering for e in small.products if e.status == "quantized"} == {
        "emulated: no native fp8 product on a GPU that pays below 69 GFLOP"
    }
    monkeypatch.setattr(limits, "LIMITS", ())
    step = compile_step(single, policy, find_device("h100"), **size)
    assert {e.lowering for e in step.products if e.status == "quantized"} == {"native fp8"}
    assert products(step) == 3 * (7 + 1)
    names = [name for k in step.kernels for name in [k.name] * k.count]
    # Inputs (q k v share one, gate and up share one, o, down) and gradients: both axes at once.
    # Weights: one axis in the forward, the other in the backward, which keeps no codes of them.
    assert names.count("qgraph_codes_kernel") == (4 + 7 + 2 * 7) + (1 + 1 + 2)
    halves = [half for k in step.kernels if "codes" in k.name for half in [k.half] * k.count]
    assert halves.count("forward") == (4 + 7) + (1 + 1)
    assert "qgraph_fake_quant_kernel" not in names


def test_a_launch_is_rated_by_what_it_multiplies() -> None:
    chip = find_device("b200")
    size = torch.Size((256, 64))
    found = product_launch(size, size, torch.bfloat16, False, machine_of(chip))
    nothing: Any = None
    compiler = _Compiler(chip=chip, shapes=nothing, modules={}, machine_code=False, compiled={})
    common = {"half": "forward", "nodes": (), "place": "", "count": 1}
    for unit in ("fp4", "fp8", "bf16"):
        work = compiler._launched(replace(found, unit=unit), common).work
        assert (work.kind, work.rate) == (unit, chip.peaks[unit])
    assert found.unit == "fp4"
    other = compiler._launched(replace(found, flops=0), common).work
    assert (other.kind, other.rate) == ("", 0)


def test_why_a_gpu_does_not_multiply_nvfp4() -> None:
    found = {name: why_no_nvfp4(machine_of(device)) for name, device in DEVICES.items()}
    assert {name for name, why in found.items() if why is None} == {"b200", "rtx5090"}
    assert found["a100"] == "no NVFP4 product on a GPU of capability 8.0: it has no FP4 units"
    assert found["mi355x"] == (
        "no NVFP4 product on this GPU: its FP4 units scale 32 elements by a power of two"
    )


def test_the_command_line_reports_and_keeps_the_code(single: str, tmp_path: Path) -> None:
    policy = tmp_path / "all.yaml"
    policy.write_text(NVFP4_ALL)
    found = run(
        "compile", single, "--policy", str(policy), "--target", "b200", "--offline",
        "--length", "32", "--json", "--keep", str(tmp_path / "code"),
    )  # fmt: skip
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report == json.loads((tmp_path / "code" / "report.json").read_text())
    calls = report["quantized"]["calls"]
    scaled = [c for c in calls if c["name"] == "qgraph_product_kernel"]
    assert scaled
    assert all(any("mxf4nvf4" in i for i in c["instructions"]) for c in scaled)
    assert {c["rate_kind"] for c in scaled} == {"fp4"}
    assert report["quantized"]["spilling_kernels"] == []
    assert all(c["moved_bytes"] >= c["minimum_bytes"] > 0 for c in calls if c["kind"] == "triton")
    assert report["added"]["kernels"] > 0
    assert list((tmp_path / "code" / "quantized" / "kernels").glob("*_pack_kernel.cubin"))
    text = (tmp_path / "code" / "quantized" / "forward.py").read_text()
    assert "torch.ops.qgraph.pack" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--target", "b300", "--offline"),
            "unknown device 'b300'\n  fix: did you mean 'b200'? devices:",
        ),
        (("--target", "b200"), "runs nothing\n  fix: add --offline"),
        (("--target", "b200", "--offline", "--policy", "nvfp5"), "did you mean"),
    ],
)
def test_bad_arguments_are_told(arguments: tuple[str, ...], message: str) -> None:
    found = run("compile", "preset:tiny-llama", *arguments)
    assert found.code == 1
    assert message in found.err
    assert "Traceback" not in found.err


def test_a_missing_triton_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    found = run("compile", "preset:tiny-llama", "--target", "b200", "--offline")
    assert found.code == 1
    assert found.err.endswith(
        "error: compiling for a GPU needs Triton, which is not installed\n  fix: pip install triton\n"
    )


# Measured: torchtitan, docs/performance.md: Llama 3 8B, 64 A100 80 GB, sequences of 8192, local batch
# 1, selective activation checkpointing: 2904 to 2973 tokens a second and GPU, 56.8 % to 58.2 % MFU.
TOKENS_A_SECOND, MFU, PEAK = 2973, 0.582, 312e12


@pytest.mark.full
def test_the_roofline_of_a_plain_llama_agrees_with_a_published_run() -> None:
    step = compile_step(
        "preset:llama3-8b", load_policy("high"), find_device("a100"), batch=1, length=8192,
        machine_code=False,
    )  # fmt: skip
    measured = 8192 / TOKENS_A_SECOND  # 2.76 s, with the optimizer and communication
    flops = sum(k.count * k.work.flops for k in step.kernels)
    # What the published utilization says a step computes, to 5 %.
    assert flops == pytest.approx(MFU * PEAK * measured, rel=0.05)
    # A bound, and no loose one: the run takes 1.4 to 2 times as long.
    assert 1.4 < measured / step.seconds < 2.0
