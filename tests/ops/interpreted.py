"""The GPU's kernels held to the definitions: under TRITON_INTERPRET=1 on the CPU, or on a GPU.

Run by test_gpu_kernels.py, and by gpu_check.py with DEVICE set. Prints one line for each disagreement
and the number of comparisons. Arguments: checks to run, by name (none: all); `telling`, to take fewer
kinds of data; a line of the kernels to break first, as old=>new: then it stops at the first disagreement.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import BlockFormat, parse_format
from qgraph.numerics import TE_SIGNS, Noise
from qgraph.numerics.storage import swizzle
from qgraph.ops import at_hand, pack
from qgraph.ops.gpu import codes as codes_file
from qgraph.ops.gpu.codes import codes_on_gpu
from qgraph.ops.gpu.fake_quant import quantize_on_gpu
from qgraph.ops.gpu.pack import NVFP4_FORMATS, pack_on_gpu
from qgraph.ops.gpu.product import product_launch
from tests.numerics.data import every_exponent, kinds, same_bits

NVFP4 = NVFP4_FORMATS
OTHERS = (
    "e4m3/1x16/e4m3/fp32", "e4m3/1x32/ue8m0-rceil", "e2m1/1x32/ue8m0-rceil", "e5m2/1x32/ue8m0-floor",
    "e2m1/1x32/ue8m0-floor", "e4m3/tensor/fp32", "e5m2/tensor/fp32",
)  # fmt: skip
NOISE = Noise(seed=2**31 + 5, site=2**32 - 1)
ALL = tuple(itertools.product((-1, -2), (None, NOISE)))
DATA = kinds()
TELLING = ("randn", "rows_exp8", "denormal", "nan", "midpoints")
DEVICE = "cpu"
Found = tuple[str, bool]


def shapes() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(31)
    for shape in ((1, 1), (1, 40), (40, 1), (65, 17), (2, 3, 5, 33), (3, 16, 16), (130, 70)):
        x = torch.randn(shape, generator=generator)
        yield x * torch.exp(3 * torch.randn(shape, generator=generator))


def fake_quant() -> Iterator[Found]:
    for index, ((kind, x), text) in enumerate(itertools.product(DATA.items(), NVFP4 + OTHERS)):
        fmt, narrow = parse_format(text), kind in ("randn", "nan", "denormal")
        settings = ALL if text in NVFP4 else (ALL[3 * (index % 2)],)
        for dtype in (torch.float32, torch.bfloat16):
            if dtype == torch.bfloat16 and not narrow:
                settings = ALL[1:3] if text in NVFP4 else ()
            for axis, noise in settings:
                y = x.to(dtype)
                want = numerics.fake_quant(y, fmt, axis, noise)
                found = on_device(y, fmt, axis, noise)
                yield f"fake_quant {kind} {text} {dtype} {axis} {noise}", same_bits(found, want)


def on_device(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    noise: Noise | None,
    signs: str = "",
    output: str = "bf16",
) -> Tensor:
    return quantize_on_gpu(x.to(DEVICE), fmt, axis, noise, signs, output).cpu()


def every_shape() -> Iterator[Found]:
    for x, text in itertools.product(
        shapes(), (*NVFP4, "e4m3/1x32/ue8m0-rceil", "e4m3/tensor/fp32")
    ):
        for axis, noise in ALL[1:3]:
            fmt = parse_format(text)
            want = numerics.fake_quant(x, fmt, axis, noise)
            found = on_device(x, fmt, axis, noise)
            yield f"shape {tuple(x.shape)} {text} {axis} {noise}", same_bits(found, want)


def every_top() -> Iterator[Found]:
    small = 0.75 * torch.exp2(-torch.arange(20.0))  # some are subnormals beside the largest
    spread = torch.cat([torch.linspace(-1, 1, 12), small]) * every_exponent()[:, None]
    for text in (NVFP4[0], "e4m3/1x32/ue8m0-rceil", "e2m1/1x32/ue8m0-floor"):
        fmt = parse_format(text)
        largest = fmt.element.max / 2.0**fmt.element.max_exponent
        for share in (1.0, largest):  # of the largest number itself the scale is a power of two
            want = numerics.fake_quant(spread * share, fmt, -1)
            found = on_device(spread * share, fmt, -1, None)
            yield f"every exponent {text} {share}", same_bits(found, want)


def rotated() -> Iterator[Found]:
    fmt = parse_format(NVFP4[0])
    for (kind, x), dtype, axis in itertools.product(
        DATA.items(), (torch.float32, torch.bfloat16), (-1, -2)
    ):
        if (dtype == torch.float32 or axis == -1) and kind not in ("randn", "nan", "denormal"):
            continue
        others = (("+-" * 16, "fp32"), ("++-+", "bf16")) if kind in ("randn", "rows_exp8") else ()
        for signs, output in ((TE_SIGNS, "bf16"), *others):
            y = x.to(dtype)
            turned = numerics.hadamard(y, signs, axis, output)
            want = numerics.fake_quant(turned, fmt, axis, NOISE)
            found = on_device(y, fmt, axis, NOISE, signs, output)
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
    kept = [(k, x) for k, x in DATA.items() if k not in ("gradient", "huge", "columns_exp8")]
    tensors = [*kept, ("tall", next(itertools.islice(shapes(), 6, None)))]
    for (kind, x), case in itertools.product(tensors, cases):
        row, row_turns, row_draws, column, column_turns, column_draws = case
        y = x.to(torch.bfloat16)
        arguments = (row, row_turns, row_draws, 5, column, column_turns, column_draws, 6)
        want = pack(y, *arguments, TE_SIGNS, "bf16", seed)
        sides = (arguments[:4], arguments[4:])
        made = pack_on_gpu(y.to(DEVICE), sides, TE_SIGNS, "bf16", 77)
        found = tuple(part.cpu() for part in made)
        for part, a, b in zip(("codes", "scales", "whole") * 2, found, want, strict=True):
            same = torch.equal(a, b) if a.dtype == torch.uint8 else same_bits(a, b)
            if part == "scales":  # a NaN has two signs
                same = torch.equal(torch.where(a == 255, 127, a), torch.where(b == 255, 127, b))
            yield f"pack {kind} {case} {part}", same


def eight_bit_codes() -> Iterator[Found]:
    texts = (
        "e4m3/tensor/fp32",
        "e5m2/tensor/fp32",
        "e4m3/1x32/ue8m0-rceil",
        "e5m2/1x32/ue8m0-floor",
    )
    matrices = [(str(tuple(x.shape)), x) for x in shapes() if x.dim() == 2]
    for (kind, x), text in itertools.product([*DATA.items(), *matrices], texts):
        fmt, narrow = parse_format(text), kind in ("randn", "nan", "denormal")
        for dtype in (torch.float32, torch.bfloat16)[: 1 + narrow]:
            y = x.to(dtype)
            want = [
                part
                for axis in (-1, -2)
                for part in numerics.quantize(y, fmt, axis, visible=True)[:2]
            ]
            for row, column in ((True, True), (False, True))[: 1 + narrow]:
                made = codes_on_gpu(y.to(DEVICE), fmt, row=row, column=column)
                for i, part in enumerate(("codes", "scales") * 2):
                    if (row, column)[i // 2]:
                        a, b = made[i].cpu(), want[i]
                        same = torch.equal(a, b) if a.dtype == torch.uint8 else same_bits(a, b)
                        yield f"codes {kind} {text} {dtype} {row} {part}", same


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
        found = torch.empty(21, 133, device=DEVICE)
        launch = product_launch(
            sides[0][0].shape, sides[1][0].shape, torch.float32, added is not None, at_hand("cuda")
        )
        operands = [part.to(DEVICE) for side in sides for part in side]
        launch.run(*operands, found if added is None else added.to(DEVICE), found, 21, 133, 72)
        # Every term is a whole number of 2**-8 and sums stay below 2**16: exact in float32.
        want = (exact[0].double() @ exact[1].double().T).float() * (10.5 * 66.5)
        want = want if added is None else want + added
        yield f"product bias {added is not None}", torch.equal(found.cpu(), want)


CHECKS = (packs, fake_quant, every_shape, every_top, rotated, eight_bit_codes, product)


def main() -> None:
    warnings.simplefilter("ignore")
    words = sys.argv[1:]
    broken = [word for word in words if "=>" in word]
    for change in broken:
        _break(change)
    if "telling" in words:
        for kind in DATA.keys() - TELLING:
            del DATA[kind]
    wrong = compared = 0
    for check in [check for check in CHECKS if check.__name__ in words] or CHECKS:
        for name, same in check():
            if wrong and broken:
                break
            compared += 1
            if not same:
                wrong += 1
                if wrong <= 20:
                    print("differs:", name)
    print(f"{compared} compared, {wrong} differ")


def _break(change: str) -> None:
    """Load the file of the kernels that holds a line with that line changed, and what it defines anew."""
    old, new = change.split("=>")
    home = Path(codes_file.__file__).parent
    (file,) = [file for file in home.glob("*.py") if old in file.read_text()]
    source = file.read_text()
    assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as broken:
        broken.write(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"qgraph.ops.gpu.{file.stem}", broken.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Every file has imported the sound kernels by now: it gets the broken ones in their place.
    before = {**vars(sys.modules[f"qgraph.ops.gpu.{file.stem}"])}
    for name, value in vars(module).items():
        if type(value) is type(codes_file.codes_kernel):
            for other in [m for key, m in sys.modules.items() if key.startswith("qgraph.ops.gpu.")]:
                if vars(other).get(name) is before[name]:
                    setattr(other, name, value)


if __name__ == "__main__":
    main()
