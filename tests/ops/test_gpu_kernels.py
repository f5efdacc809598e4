"""The GPU's kernels: the definitions' bits under Triton's interpreter, machine code for every GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qgraph.formats import parse_format
from qgraph.ops import DEVICES, Launch, Quantize, at_hand, choose, find_device, machine_of
from qgraph.ops.gpu.codes import casts, codes_launches
from qgraph.ops.gpu.fake_quant import fake_quant_launches
from qgraph.ops.gpu.pack import NVFP4_FORMATS, empty_sides, pack_launches, side_bytes
from qgraph.ops.gpu.product import product_launch
from qgraph.ops.work import Wanted
from qgraph.predict.offline.launches import compile_launch
from qgraph.predict.offline.standin import standing_in

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
BF16 = torch.bfloat16
NVFP4 = NVFP4_FORMATS[0]
SHAPE = torch.Size((256, 128))


def interpret(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.ops.interpreted", *arguments]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("data", "least"), [("telling", 400), pytest.param("every", 800, marks=pytest.mark.full)]
)
def test_every_kernel_gives_the_bits_of_the_definitions(data: str, least: int) -> None:
    last = interpret(data).splitlines()[-1]
    found = re.fullmatch(r"(\d+) compared, (\d+) differ", last)
    assert found is not None, last
    assert int(found[1]) > least
    assert int(found[2]) == 0, last


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("fake_quant", "    return (a + c) - c=>    return tl.floor((a + c) - c + 0.25)"),
        ("packs", "low | (high << 4)=>high | (low << 4)"),
        ("fake_quant", "to(tl.float32) * 0.00390625=>to(tl.float32) * 0.0078125"),
        ("eight_bit_codes", "- ((LOWEST - 1) << MANTISSA)=>- ((LOWEST - 2) << MANTISSA)"),
    ],
    ids=["rounding", "nibbles", "noise", "codes"],
)
def test_a_broken_kernel_is_caught(check: str, change: str) -> None:
    assert "differs: " in interpret(check, change)


def launches(casts: bool) -> dict[str, Launch]:
    """One launch of each kernel with everything on, in small programs that compile fast."""
    sides = ((NVFP4, False, True, 1), (NVFP4, True, True, 2))
    first, second = pack_launches(SHAPE, BF16, sides, 16, "bf16")
    _, third = fake_quant_launches(SHAPE, BF16, parse_format(NVFP4), True, True, 16)
    fmt = parse_format("e4m3/tensor/fp32")
    _, fourth = codes_launches(SHAPE, BF16, fmt, True, True, casts)
    small = {
        name: replace(launch, constants={**launch.constants, "TM": 32, "TN": 32}, warps=4)
        for name, launch in {
            "amax": first,
            "pack": second,
            "fake_quant": third,
            "codes": fourth,
        }.items()
    }
    product = product_launch(
        torch.Size((256, 64)), torch.Size((128, 64)), BF16, True, at_hand("cuda")
    )  # as launched
    return {**small, "product": product}


@pytest.mark.parametrize("target", DEVICES)
def test_every_kernel_compiles_for_every_gpu_without_spills(target: str) -> None:
    chip = find_device(target)
    with standing_in(chip):
        for name, launch in launches(casts(machine_of(chip))).items():
            if name == "product" and "nvfp4" not in chip.block_scales:
                continue  # never launched there: see `why_no_nvfp4`
            code = compile_launch(launch, chip)
            assert code.registers > 0
            assert code.spills == 0, name
            assert code.files["hsaco" if chip.amd else "cubin"]
            if name == "product":
                assert any("mxf4nvf4" in i for i in code.instructions), code.instructions


def test_bytes_of_a_pack_by_hand() -> None:
    # x [256, 128] bf16, both orientations, 8 tiles of 64x64 look for the largest magnitude.
    sides = ((NVFP4, False, False, 0), (NVFP4, True, False, 0))
    first, second = pack_launches(SHAPE, BF16, sides, 16, "bf16")
    read = 256 * 128 * 2  # 65536
    assert first.minimum == first.moved == read + 2 * 8 * 4  # two lists of 8 partial maxima
    row = 256 * 128 // 2 + 256 * 128 // 16 + 4  # codes, one byte a block, one float: 18436
    column = 128 * 256 // 2 + 128 * 256 // 16 + 4
    assert second.minimum == read + row + column + 8 * 4
    # 2x2 programs of 128x64 load 8 partial maxima for each side.
    assert second.grid == (2, 2, 1)
    assert second.moved == read + row + column + 4 * 2 * 8 * 4
    assert second.moved / second.minimum < 1.1


@pytest.mark.parametrize("shape", [(256, 128), (21, 72), (1, 16), (129, 65), (64, 320)])
def test_bytes_of_a_side_are_those_of_its_tensors(shape: tuple[int, int]) -> None:
    sides = ((NVFP4, False, False, 0), (NVFP4, True, False, 0))
    found = empty_sides(torch.empty(shape), sides)
    sizes = [sum(part.nbytes for part in side) for side in (found[:3], found[3:])]
    assert sizes == [side_bytes(*shape), side_bytes(*reversed(shape))]


def test_bytes_of_8_bit_codes_by_hand() -> None:
    # x [256, 128] bf16 -> codes [256, 128] and [128, 256], a byte each.
    whole, fine = (parse_format(f"e4m3/{text}") for text in ("tensor/fp32", "1x32/ue8m0-rceil"))
    first, second = codes_launches(SHAPE, BF16, whole, True, True, False)
    assert first is not None
    assert first.minimum == 256 * 128 * 2 + 8 * 4  # 8 tiles of 64x64 look for the largest magnitude
    assert second.minimum == 256 * 128 * (2 + 1 + 1) + 2 * 4 + 8 * 4  # a float32 scale a side
    first, second = codes_launches(SHAPE, BF16, fine, False, True, False)
    assert first is None
    assert second.minimum == 256 * 128 * (2 + 1) + 256 * 128 // 32


def test_bytes_of_a_product_by_hand() -> None:
    found = product_launch(
        torch.Size((256, 64)), torch.Size((128, 64)), BF16, False, at_hand("cuda")
    )
    codes = (256 + 128) * 64  # 128 summed elements, two to a byte
    scales = 256 * 8 + 128 * 8  # a byte for 16 elements; tiles of 128 rows and 4 blocks are full
    assert found.minimum == codes + scales + 2 * 4 + 256 * 128 * 2
    assert found.flops == 2 * 256 * 128 * 128


def test_what_the_gpu_takes_and_leaves_to_the_definitions() -> None:
    machine = machine_of(find_device("h100"))
    taken = ("e2m1/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e5m2/tensor/fp32")
    left = ("int8/row/fp32", "e2m1/1x16/e4m3:4over6/fp32", "nf4/1x64/fp32", "e2m1/3x7/e4m3/fp32")
    for text in taken + left:
        chosen = choose(Quantize(format=parse_format(text)), machine)
        assert chosen.falls_back == (text in left)
        found = "triton" if text in taken else f"reference: no triton kernel takes {text}"
        assert chosen.text == found


@pytest.mark.parametrize("text", ["e2m1/1x32/ue8m0-rceil", "e3m2/tensor/fp32", "int8/tensor/fp32"])
def test_the_gpu_stores_floats_of_8_bits_alone_as_codes(text: str) -> None:
    machine = machine_of(find_device("h100"))
    names: dict[Wanted, str] = {"codes": "reference codes", "both": "reference codes, both ways"}
    for wanted, name in names.items():
        chosen = choose(Quantize(format=parse_format(text), wanted=wanted), machine)
        assert chosen.text == f"{name}: no triton kernel for codes of {text}"


def test_the_gpu_check_runs_without_a_gpu_and_says_why() -> None:
    from tests.gpu_check import CHECKS, run

    if torch.cuda.is_available():
        pytest.skip("a GPU is here: run make gpu-check")
    assert list(run()) == [(name, "skipped", "no CUDA device") for name, _ in CHECKS]
