"""The table of kernels: complete, asked by the ops, and its measured limits as data."""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qgraph.ops
from qgraph import numerics, ops
from qgraph.formats import parse_format, parse_rounding
from qgraph.numerics import TE_SIGNS, Noise
from qgraph.ops import (
    DEVICES,
    KERNELS,
    How,
    Kernel,
    Machine,
    Multiply,
    Quantize,
    Rotate,
    at_hand,
    choose,
    find_device,
    machine_of,
)
from qgraph.ops.native.limits import LIMITS
from tests.numerics.data import kinds, same_bits
from tests.ops.asked import product_of

HOME = Path(qgraph.ops.__file__).parent
CPU = Machine(device="cpu", features=frozenset({"avx512_vnni"}))
OLD_CPU = Machine(device="cpu")
BARE = Machine(device="cpu", no_compiler="no C++ compiler")
MACHINES = [CPU, OLD_CPU, BARE, Machine(device="xpu"), Machine(device="cuda", no_triton="none"),
            *map(machine_of, DEVICES.values())]  # fmt: skip
TEXTS = (
    "e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e4m3/tensor/fp32", "int8/row/fp32",
    "nf4/1x64/fp32", "e5m2/row/fp32",
)  # fmt: skip


def made_in(file: Path) -> set[str]:
    """The names of a file that are kernels."""
    return {
        target.id
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if getattr(node.value.func, "id", "") in ("Kernel", "_make")
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def table() -> list[str]:
    """The names in KERNELS, as they are written."""
    for node in ast.parse((HOME / "kernels.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "KERNELS":
            assert isinstance(node.value, ast.Tuple)
            return [ast.unparse(item) for item in node.value.elts]
    raise AssertionError("there is no table")


def test_every_kernel_stands_in_the_table_once() -> None:
    made = [name for file in HOME.rglob("*.py") for name in made_in(file)]
    assert sorted(made) == sorted(table())
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)


def works() -> list[Rotate | Quantize | Multiply]:
    """Work of each kind that some kernel takes, and that none does."""
    quantized = [
        Quantize(
            format=parse_format(text), wanted=wanted, dtype=dtype, points=points,  # type: ignore[arg-type]
            rounding=parse_rounding(rounding), draws=rounding == "stochastic",
        )
        for text, wanted, dtype, points, rounding in itertools.product(
            TEXTS, ("values", "codes", "both", "packed"), (torch.float32, torch.float64), (0, 16, 128),
            ("nearest", "stochastic", "odd"),
        )
    ]  # fmt: skip
    sides = [Quantize(format=parse_format(text)) for text in TEXTS]
    products = [Multiply(left=a, right=b, dtype=torch.float32) for a in sides for b in sides]
    return [*quantized, *products, Rotate(dtype=torch.float32), Rotate(dtype=torch.float64)]


def test_all_work_is_taken_everywhere_and_what_falls_back_says_why() -> None:
    seen: set[Kernel] = set()
    for machine, work in itertools.product(MACHINES, works()):
        chosen = choose(work, machine, always=True)
        seen.add(chosen.kernel)
        assert chosen.kernel.refuses(work, machine) is None
        assert chosen.kernel.device in ("", machine.device)
        assert chosen.kernel.definition == chosen.falls_back
        if chosen.falls_back:
            assert chosen.why.strip(), (work, machine)
            assert chosen.text == f"{chosen.kernel.name}: {chosen.why}"
    never = {kernel.name for kernel in KERNELS} - {kernel.name for kernel in seen}
    assert never <= {"mxfp8"}  # it gives bfloat16 alone


@pytest.mark.parametrize(
    ("text", "machine", "found"),
    [
        ("int8/row/fp32", CPU, "cpu"),
        ("nf4/1x64/fp32", CPU, "cpu, two passes"),
        ("int8/row/fp32", BARE, "reference: no C++ compiler"),
        ("e4m3/1x32/ue8m0-rceil", machine_of(DEVICES["mi355x"]), "triton"),
        ("int8/row/fp32", machine_of(DEVICES["b200"]), "reference: no triton kernel takes int8/row/fp32"),
        ("int8/row/fp32", Machine(device="xpu"), "reference: no xpu kernels yet"),
        ("e4m3/tensor/fp32@torchao", CPU, "cpu, two passes"),
        ("int8/row/fp32:absmax+floor1e-5", CPU, "cpu, two passes"),
        (
            "e4m3/tensor/fp32@torchao", machine_of(DEVICES["b200"]),
            "reference: no triton kernel takes e4m3/tensor/fp32@torchao",
        ),
    ],
)  # fmt: skip
def test_what_quantizes_where(text: str, machine: Machine, found: str) -> None:
    assert choose(Quantize(format=parse_format(text)), machine).text == found


def test_why_a_tensor_is_left_to_the_definition() -> None:
    work = Quantize(format=parse_format("e4m3/tensor/fp32"))
    gpu = machine_of(DEVICES["h100"])
    assert choose(replace(work, dtype=torch.float16), gpu).why == "no triton kernel reads float16"
    assert choose(replace(work, dtype=torch.float64), CPU).why == "no cpu kernel reads float64"
    assert choose(replace(work, rounding=parse_rounding("odd")), gpu).why == (
        "no triton kernel takes e4m3/tensor/fp32 rounded odd"
    )
    assert choose(replace(work, rounding=parse_rounding("stochastic:24")), gpu).why == (
        "no triton kernel takes e4m3/tensor/fp32 rounded stochastic:24"
    )
    assert choose(replace(work, points=128), gpu).kernel.name == "triton, rotated by the reference"
    assert choose(replace(work, points=16), gpu).kernel.name == "triton"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("signs", ["", TE_SIGNS])
def test_the_ops_run_the_kernel_that_the_table_names(text: str, signs: str) -> None:
    x, fmt, noise = kinds(40, 48)["rows_exp3"], parse_format(text), Noise(seed=7, site=3)
    rounding = parse_rounding("stochastic")
    for dtype in (torch.float32, torch.float16, torch.float64):
        work = Quantize(format=fmt, rounding=rounding, draws=True, dtype=dtype, points=len(signs))
        y, seed = x.to(dtype), torch.tensor([7])
        got: Tensor = choose(work, at_hand("cpu")).kernel.run(
            y, fmt, rounding, How(-1, noise, signs)
        )
        own = ops.rotate_quant(y, signs, "bf16", text, -1, seed, 3) if signs else None
        own = ops.fake_quant(y, text, -1, seed, 3) if own is None else own
        turned = numerics.hadamard(y, signs, -1, "bf16") if signs else y
        want = numerics.fake_quant(turned, fmt, -1, noise, rounding)
        for found in (got, own):
            assert found.dtype == dtype
            assert same_bits(found.float(), want.float())  # arithmetic is float32's in any dtype


def test_limits_are_dated_figures_of_a_machine() -> None:
    for limit in LIMITS:
        assert limit.product in {kernel.name for kernel in KERNELS if kernel.work is Multiply}
        assert limit.reason.startswith("no native ")
        assert limit.date.count("-") == 2
        assert bool(limit.figure) == bool(limit.on) == bool(limit.torch)


@pytest.mark.parametrize(
    ("text", "machine", "limited"),
    [
        ("int8/row/fp32", CPU, ""),
        ("int8/row/fp32", OLD_CPU, "without AVX-512 VNNI that is faster than emulation"),
        ("int8/row/fp32", machine_of(find_device("h100")), "takes as long as one of bfloat16"),
        ("e4m3/tensor/fp32", CPU, "on a cpu that is faster than emulation"),
        ("e4m3/tensor/fp32", machine_of(find_device("h100")), "where sizes change"),
    ],
)
def test_native_heeds_the_limits_and_native_always_does_not(
    text: str, machine: Machine, limited: str
) -> None:
    name = "int8" if "int8" in text else "fp8"
    assert product_of(text, text, machine, always=True) == name
    usual = product_of(text, text, machine)
    assert usual == name if not limited else limited in usual


def test_a_product_is_worth_it_from_a_size_on() -> None:
    (limit,) = [limit for limit in LIMITS if limit.flops]
    gpu, text = machine_of(find_device("h100")), "e4m3/tensor/fp32"
    assert product_of(text, text, gpu, flops=limit.flops) == "fp8"
    small = product_of(text, text, gpu, flops=limit.flops - 1)
    assert small == "no native fp8 product on a GPU that pays below 69 GFLOP"


def test_a_machine_is_one_object_so_that_looking_it_up_is_cheap() -> None:
    assert at_hand("cpu") is at_hand("cpu")
    assert machine_of(find_device("b200")) is machine_of(DEVICES["b200"])
    assert at_hand("cpu").device == "cpu"
    assert machine_of(find_device("mi355x")).hip


def test_the_instructions_of_a_cpu_are_those_its_system_tells() -> None:
    told = Path("/proc/cpuinfo")
    if not told.exists() or "\nflags" not in (text := told.read_text()):
        pytest.skip("no x86 on Linux")
    flags = {*text.partition("\nflags")[2].partition("\n")[0].split()}
    found = at_hand("cpu").features
    assert [("avx2" in found, "avx512_vnni" in found)] == [
        ("avx2" in flags, "avx512_vnni" in flags)
    ]
    assert "sse2" in found  # every one has it
    assert at_hand("cuda").features == frozenset()
