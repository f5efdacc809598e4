"""`make gpu-check`: everything that only a GPU can tell, in ten minutes, as one table.

Numbers, training and times. Without a GPU each check is skipped and says why. Exits with 1 if one failed.
"""

from __future__ import annotations

import copy
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from qgraph.ops import at_hand, nvfp4_mm, pack
from qgraph.ops.gpu.pack import NVFP4_FORMATS
from qgraph.ops.gpu.product import why_no_nvfp4
from tests.ops.asked import product_of

NVFP4 = NVFP4_FORMATS[0]
Row = tuple[str, str, str]  # what, how it went, what was found


class Skip(Exception):  # noqa: N818
    """A check that this machine cannot run, and why."""


def device() -> str:
    """Name the GPU."""
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, capability {found.major}.{found.minor}, {found.total_memory / 2**30:.0f} GiB, "
        f"torch {torch.__version__}"
    )


def bits() -> str:
    """Hold every kernel to the definitions, bit for bit, on all kinds of data."""
    from tests.ops import interpreted

    interpreted.DEVICE = "cuda"
    compared, wrong = 0, []
    for check in interpreted.CHECKS:
        if check is interpreted.product:
            continue
        for name, same in check():
            compared += 1
            wrong += [] if same else [name]
    assert not wrong, f"{len(wrong)} of {compared} differ: {'; '.join(wrong[:5])}"
    return f"{compared} comparisons, no bit differs"


def product() -> str:
    """Hold the NVFP4 product to float64 on the same codes."""
    _needs_nvfp4()
    generator = torch.Generator().manual_seed(1)
    sides = []
    for rows in (300, 200):
        x = torch.randn(rows, 512, generator=generator).bfloat16()
        side = pack(x, NVFP4, False, False, 0, "", False, False, 0, "", "bf16", None)[:3]
        sides.append(side)
    want = nvfp4_mm(*sides[0], *sides[1], None, torch.float32)
    (a, a_scales, a_whole), (b, b_scales, b_whole) = ([t.cuda() for t in side] for side in sides)
    found = nvfp4_mm(a, a_scales, a_whole, b, b_scales, b_whole, None, torch.float32).cpu()
    error = float((found - want).norm() / want.norm())
    # Sums of 512 float32 terms in another order: far below what one code's step would change.
    assert error < 1e-5, f"relative error {error:.2e}"
    return f"relative error {error:.1e}"


def eight_bits() -> str:
    """Hold products of 8-bit codes, through torch's own, to float64 on what the codes are worth."""
    from qgraph import numerics, ops
    from qgraph.formats import parse_format

    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(n, 500, generator=generator).bfloat16() for n in (300, 200))
    told = []
    for text in ("int8/row/fp32", "e4m3/tensor/fp32", "e4m3/row/fp32", "e4m3/1x32/ue8m0-rceil"):
        fmt = parse_format(text)
        kind = product_of(text, text, at_hand("cuda"), always=True, dtype=torch.bfloat16)
        if kind.startswith("no "):
            told.append(f"{text}: {kind}")
            continue
        left, right = numerics.fake_quant(x, fmt, -1), numerics.fake_quant(w, fmt, -1)
        want = left.double() @ right.double().T
        parts = [part for t in (x, w) for part in ops.quantize(t.cuda(), text, -1)[:2]]
        found = ops.scaled_mm(*parts, kind, text, text, torch.bfloat16).cpu().double()
        error = float((found - want).norm() / want.norm())
        # The result is rounded to bfloat16; sums of 500 float32 terms are far more exact.
        assert error < 2.0**-8, f"{text}: relative error {error:.1e}"
        told.append(f"{text} {error:.1e}")
    return "; ".join(told)


def training() -> str:
    """Train a small model in NVFP4 on the GPU and on the CPU from the same seed: the losses must agree."""
    import qgraph
    from qgraph.models.examples import example_inputs
    from qgraph.models.load import load_model

    losses = {}
    start = load_model("preset:tiny-llama,layers=2")
    inputs = example_inputs(start, 4, 128)
    for place in ("cpu", "cuda"):
        model = qgraph.compile(copy.deepcopy(start).to(place), "nvfp4", codegen=place == "cuda")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        given = {key: value.to(place) for key, value in inputs.items()}
        torch.manual_seed(0)
        found = []
        for _ in range(10):
            loss = model(**given).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses[place] = found
    first, last = (abs(losses["cpu"][i] / losses["cuda"][i] - 1) for i in (0, -1))
    assert losses["cuda"][-1] < losses["cuda"][0], f"the loss does not fall: {losses['cuda']}"
    assert first < 1e-3, f"first losses {losses['cpu'][0]} and {losses['cuda'][0]}"
    return f"loss {losses['cuda'][0]:.4f} to {losses['cuda'][-1]:.4f}; from the CPU's {first:.1e}, {last:.1e}"


def quantizing() -> str:
    """Time the kernels on an activation of Llama-3-8B, beside a copy of it."""
    x = torch.randn(8192, 4096, device="cuda").bfloat16()
    out = torch.empty_like(x)
    base = _time(lambda: out.copy_(x))
    sides = (NVFP4, False, False, 0, NVFP4, True, False, 0)
    signs = "+++-+------+-+--"
    rows = {
        "pack both ways": lambda: pack(x, *sides, signs, "bf16", None),
        "fake_quant": lambda: torch.ops.qgraph.fake_quant(x, NVFP4, -1),
        "rotate_quant": lambda: torch.ops.qgraph.rotate_quant(x, signs, "bf16", NVFP4, -2),
    }
    times = [f"{name} {_time(step) / base:.2f}" for name, step in rows.items()]
    return f"copy {base * 1e6:.0f} us = 1.00; " + ", ".join(times)


def products() -> str:
    """Time the NVFP4 product of a Llama-3-8B layer beside bf16's."""
    _needs_nvfp4()
    a, b = (torch.randn(n, 4096, device="cuda").bfloat16() for n in (8192, 14336))
    left, right = (
        pack(x, NVFP4, False, False, 0, "", False, False, 0, "", "bf16", None)[:3] for x in (a, b)
    )
    plain = _time(lambda: a @ b.T)
    found = _time(lambda: nvfp4_mm(*left, *right, None, torch.bfloat16))
    rate = 2 * 8192 * 14336 * 4096 / 1e12
    return f"bf16 {rate / plain:.0f} TFLOP/s, nvfp4 {rate / found:.0f}: {plain / found:.2f} times"


def eight_bit_times() -> str:
    """Time FP8 codes and products of a Llama-3-8B layer, and of smaller ones, beside bf16's products."""
    from qgraph import ops

    text = "e4m3/tensor/fp32"
    if (why := product_of(text, text, at_hand("cuda"), always=True)).startswith("no "):
        raise Skip(why)
    told = []
    for m, n, k in (
        (4096, 2048, 2048),
        (4096, 4096, 4096),
        (8192, 4096, 4096),
        (8192, 14336, 4096),
    ):
        a, b = (torch.randn(rows, k, device="cuda").bfloat16() for rows in (m, n))
        left, right = (ops.quantize(x, text, -1)[:2] for x in (a, b))
        sides = (*left, *right, "fp8", text, text, torch.bfloat16)
        plain = _time(partial(torch.matmul, a, b.T))
        product = _time(partial(ops.scaled_mm, *sides))
        both = _time(partial(ops.quantize_both, a, text))
        one = _time(partial(ops.quantize, b, text, -1))
        told.append(
            f"{m}x{n}x{k}: bf16 {plain * 1e6:.0f} us, fp8 {product * 1e6:.0f}, "
            f"codes of A both ways {both * 1e6:.0f}, of B {one * 1e6:.0f}"
        )
    return "; ".join(told)


def steps() -> str:
    """Time training steps beside plain Inductor's, alternating, and their peak memory."""
    import qgraph
    from qgraph.models.examples import example_inputs
    from qgraph.models.load import load_model

    start = load_model("preset:wide-llama,hidden=4096").cuda().bfloat16()
    inputs = {key: value.cuda() for key, value in example_inputs(start, 16, 512).items()}
    arms = [("fp8", "native"), ("fp8", "emulate"), ("mxfp8", "emulate"), ("nvfp4", "emulate")]
    if why_no_nvfp4(at_hand("cuda")) is None:
        arms += [("mxfp8", "native-always"), ("nvfp4", "native")]
    models = {"plain": copy.deepcopy(start)}
    models["plain"].compile()
    for policy, target in arms:
        model = qgraph.compile(copy.deepcopy(start), policy, target=target)  # type: ignore[arg-type]
        models[f"{policy} {target}"] = model
    times: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, float] = {}
    for _ in range(13):  # three to warm up
        for name, model in models.items():
            model.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            model(**inputs).loss.backward()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
            peaks[name] = torch.cuda.max_memory_allocated() - held
    base = median(times["plain"][3:])
    told = [f"plain {1e3 * base:.2f} ms, {peaks['plain'] / 2**30:.2f} GiB at its peak"]
    for name, model in models.items():
        if name != "plain":
            how = {e.lowering for e in qgraph.coverage(model).quantized} - {""}
            told.append(
                f"{name} {base / median(times[name][3:]):.2f} times as fast, "
                f"{peaks[name] / peaks['plain']:.2f} of the memory"
                + "".join(f" ({h})" for h in how)
            )
    return "; ".join(told)


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("the GPU", device),
    ("kernels, bit for bit", bits),
    ("NVFP4 product", product),
    ("8-bit products", eight_bits),
    ("training in NVFP4", training),
    ("time of quantizing", quantizing),
    ("time of a product", products),
    ("time of 8-bit products", eight_bit_times),
    ("time of a step", steps),
)


def _needs_nvfp4() -> None:
    if (why := why_no_nvfp4(at_hand("cuda"))) is not None:
        raise Skip(why)


def _time(step: Callable[[], Any], rounds: int = 20) -> float:
    for _ in range(3):
        step()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found)


def run() -> Iterator[Row]:
    """Yield each check's name, `passed`, `failed` or `skipped`, and what was found."""
    reason = at_hand("cuda").no_triton or ("" if torch.cuda.is_available() else "no CUDA device")
    for name, check in CHECKS:
        start = time.perf_counter()
        try:
            if reason:
                raise Skip(reason)
            found = check()
            yield name, "passed", f"{found} [{time.perf_counter() - start:.0f} s]"
        except Skip as why:
            yield name, "skipped", str(why)
        except Exception as error:  # noqa: BLE001 - the table must go on
            yield name, "FAILED", f"{type(error).__name__}: {error}"


def main() -> None:
    """Print the table as it comes."""
    failed = 0
    for name, state, found in run():
        failed += state == "FAILED"
        left = f"{name:35} {state:8} "
        lines = textwrap.wrap(found, 110) or [""]
        sys.stdout.write(("\n" + " " * len(left)).join([left + lines[0], *lines[1:]]) + "\n")
        sys.stdout.flush()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
