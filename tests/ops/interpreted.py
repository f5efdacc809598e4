"""Run by test_gpu_kernels.py under TRITON_INTERPRET=1: the GPU's kernels on the CPU, held to the definitions.

Prints one line for each disagreement and the number of comparisons. An argument names a line of the
kernels to break first, as old=>new: then there must be disagreements.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import parse_format
from qgraph.numerics import TE_SIGNS, Noise
from qgraph.numerics.storage import swizzle
from qgraph.ops import gpu, packed
from tests.numerics.data import every_exponent, kinds, same_bits

NVFP4 = packed.FORMATS
OTHERS = (
    "e4m3/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e2m1/1x32/ue8m0-rceil", "e5m2/1x32/ue8m0-floor",
    "e2m1/1x32/ue8m0-floor", "e4m3/tensor/fp32", "e5m2/tensor/fp32",
)  # fmt: skip
NOISE = Noise(seed=2**31 + 5, site=2**32 - 1)
DATA = kinds()
Found = tuple[str, bool]


def shapes() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(31)
    for shape in ((1, 1), (1, 40), (40, 1), (65, 17), (2, 3, 5, 33), (3, 16, 16), (130, 70)):
        x = torch.randn(shape, generator=generator)
        yield x * torch.exp(3 * torch.randn(shape, generator=generator))


def fake_quant() -> Iterator[Found]:
    for (kind, x), text, dtype in itertools.product(
        DATA.items(), NVFP4 + OTHERS, (torch.float32, torch.bfloat16)
    ):
        if text in OTHERS and dtype == torch.bfloat16 and kind not in ("randn", "nan", "denormal"):
            continue
        fmt, y = parse_format(text), x.to(dtype)
        for axis, noise in ((-1, None), (-2, NOISE)) if text in OTHERS else ALL:
            want = numerics.fake_quant(y, fmt, axis, noise)
            found = gpu.fake_quant(y, fmt, axis, noise)
            yield f"fake_quant {kind} {text} {dtype} {axis} {noise}", same_bits(found, want)


ALL = tuple(itertools.product((-1, -2), (None, NOISE)))


def every_shape() -> Iterator[Found]:
    for x, text in itertools.product(
        shapes(), (*NVFP4, "e4m3/1x32/ue8m0-rceil", "e4m3/tensor/fp32")
    ):
        for axis, noise in ALL:
            fmt = parse_format(text)
            want = numerics.fake_quant(x, fmt, axis, noise)
            found = gpu.fake_quant(x, fmt, axis, noise)
            yield f"shape {tuple(x.shape)} {text} {axis} {noise}", same_bits(found, want)


def every_top() -> Iterator[Found]:
    x = torch.linspace(-1, 1, 32) * every_exponent()[:, None]
    for text in (NVFP4[0], "e4m3/1x32/ue8m0-rceil", "e2m1/1x32/ue8m0-floor"):
        fmt = parse_format(text)
        want = numerics.fake_quant(x, fmt, -1)
        yield f"every exponent {text}", same_bits(gpu.fake_quant(x, fmt, -1, None), want)


def rotated() -> Iterator[Found]:
    fmt = parse_format(NVFP4[0])
    for (kind, x), dtype, axis in itertools.product(
        DATA.items(), (torch.float32, torch.bfloat16), (-1, -2)
    ):
        others = (("+-" * 16, "fp32"), ("++-+", "bf16")) if kind in ("randn", "rows_exp8") else ()
        for signs, output in ((TE_SIGNS, "bf16"), *others):
            y = x.to(dtype)
            turned = numerics.hadamard(y, signs, axis, output)
            want = numerics.fake_quant(turned, fmt, axis, NOISE)
            found = gpu.fake_quant(y, fmt, axis, NOISE, signs, output)
            yield f"rotated {kind} {dtype} {axis} {len(signs)} {output}", same_bits(found, want)


def packs() -> Iterator[Found]:
    seed = torch.tensor([77])
    cases = (
        (NVFP4[0], False, False, NVFP4[0], True, False),
        (NVFP4[0], False, True, NVFP4[0], True, True),
        (NVFP4[1], False, False, NVFP4[1], False, False),
        ("", False, False, NVFP4[0], True, True),
        (NVFP4[0], False, True, "", False, False),
    )
    tensors = [*DATA.items(), ("tall", next(itertools.islice(shapes(), 6, None)))]
    for (kind, x), case in itertools.product(tensors, cases):
        row, row_turns, row_draws, column, column_turns, column_draws = case
        y = x.to(torch.bfloat16)
        arguments = (row, row_turns, row_draws, 5, column, column_turns, column_draws, 6)
        want = packed.pack(y, *arguments, TE_SIGNS, "bf16", seed)
        sides = (arguments[:4], arguments[4:])
        found = packed._on_gpu(y, sides, TE_SIGNS, "bf16", 77)  # type: ignore[arg-type]
        for part, a, b in zip(("codes", "scales", "whole") * 2, found, want, strict=True):
            same = torch.equal(a, b) if a.dtype == torch.uint8 else same_bits(a, b)
            if part == "scales":  # a NaN has two signs
                same = torch.equal(torch.where(a == 255, 127, a), torch.where(b == 255, 127, b))
            yield f"pack {kind} {case} {part}", same


def product() -> Iterator[Found]:
    """Triton 3.9's interpreter takes every scale of a scaled product for a power of two: so does this."""
    generator = torch.Generator().manual_seed(41)
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    sides, exact = [], []
    for rows in (21, 133):
        codes = torch.randint(0, 256, (rows, 72), generator=generator, dtype=torch.uint8)
        scales = torch.randint(124, 131, (rows, 9), generator=generator, dtype=torch.uint8)
        both = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()
        signed = torch.where(both > 7, -values[both & 7], values[both & 7])
        exact.append(signed * torch.exp2(scales.float() - 127).repeat_interleave(16, 1))
        sides.append((codes, swizzle(scales).view(torch.float8_e4m3fn), torch.tensor(0.5 * rows)))
    bias = torch.linspace(-1, 1, 133)
    for added in (None, bias):
        found = torch.empty(21, 133)
        launch = packed.product_launch(
            sides[0][0].shape, sides[1][0].shape, torch.float32, added is not None
        )
        launch.run(*sides[0], *sides[1], found if added is None else added, found, 21, 133, 72)
        # Every term is a whole number of 2**-8 and sums stay below 2**16: exact in float32.
        want = (exact[0].double() @ exact[1].double().T).float() * (10.5 * 66.5)
        want = want if added is None else want + added
        yield f"product bias {added is not None}", torch.equal(found, want)


def main() -> None:
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        _break(sys.argv[1])
    wrong = compared = 0
    for check in (fake_quant, every_shape, every_top, rotated, packs, product):
        for name, same in check():
            if wrong and len(sys.argv) > 1:
                break
            compared += 1
            if not same:
                wrong += 1
                if wrong <= 20:
                    print("differs:", name)
    print(f"{compared} compared, {wrong} differ")


def _break(change: str) -> None:
    """Load the kernels with one line changed."""
    import importlib.util
    import tempfile

    old, new = change.split("=>")
    source = Path(gpu.__file__).with_name("triton_kernels.py").read_text()
    assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("broken_kernels", file.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gpu.kernels = lambda: module


if __name__ == "__main__":
    main()
