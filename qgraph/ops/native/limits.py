"""What was measured of native products: where one is slower than emulation, as dated data.

`native` heeds these limits, `native-always` does not. A row holds for every machine of its device:
measure on another one, and change it. `make gpu-check` times 8-bit products and steps on a GPU,
`qgraph bench --target native-always` a policy's steps on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from qgraph.ops.machine import Machine
from qgraph.ops.work import Multiply


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Where a native product does not pay, and how that is known.

    It holds for the product of that name on machines of `device`: where a CPU lacks the
    instructions `without`, where operands are scaled by `block`, for fewer operations than `flops`;
    or for all of them. `figure` is what was measured `on` which machine, with which torch, when;
    `figure` is empty where nothing was, so that nothing is known to be faster.
    """

    product: str
    device: str
    reason: str
    without: str = ""
    block: str = ""
    flops: int = 0
    figure: str
    on: str
    torch: str
    date: str

    def refuses(self, work: Multiply, machine: Machine) -> str | None:
        """Return why `work` does not pay on `machine`, None if it may."""
        side = work.left
        if machine.device != self.device or (self.without and self.without in machine.features):
            return None
        if self.block and (side is None or str(side.format.block) != self.block):
            return None
        if self.flops and work.flops is None:
            return f"{self.reason} where sizes change: it pays for large ones only"
        if self.flops and work.flops is not None:
            small = work.flops < self.flops
            return f"{self.reason} that pays below {self.flops / 1e9:.0f} GFLOP" if small else None
        return self.reason


LIMITS: tuple[Limit, ...] = (
    Limit(
        product="int8",
        device="cpu",
        without="avx512_vnni",
        reason="no native int8 product on a cpu without AVX-512 VNNI that is faster than emulation",
        figure="torch's product took 20 to 50 times as long as float32's, a step 21 times a plain one",
        on="two cores of a CPU with AVX2",
        torch="2.13",
        date="2026-11-26",
    ),
    Limit(
        product="fp8",
        device="cpu",
        reason="no native fp8 product on a cpu that is faster than emulation",
        figure="torch converts codes before it multiplies: steps took 4 to 8 times a plain one",
        on="CPUs with AVX2 and with AVX-512",
        torch="2.13",
        date="2026-11-23",
    ),
    Limit(
        product="int8",
        device="cuda",
        reason="no native int8 product on a GPU that is faster: torch's takes as long as one of bfloat16",
        figure="torch's product was 1.02 to 1.08 times as fast as bfloat16's, before quantization",
        on="NVIDIA H200",
        torch="2.11",
        date="2026-11-26",
    ),
    Limit(
        product="fp8",
        device="cuda",
        block="row",
        reason="no native fp8 product with row scales on a GPU that is known to be faster: its codes have "
        "no kernel yet",
        figure="",
        on="",
        torch="",
        date="2026-11-26",
    ),
    Limit(
        product="fp8",
        device="cuda",
        block="tensor",
        flops=2**36,
        reason="no native fp8 product on a GPU",
        figure="1.6 times as fast as bfloat16's at 8192x14336x4096, slower at 4096x2048x2048: over before "
        "it is launched",
        on="NVIDIA H200",
        torch="2.11",
        date="2026-11-26",
    ),
    Limit(
        product="mxfp8",
        device="cuda",
        reason="no native mxfp8 product that was measured to be faster",
        figure="",
        on="",
        torch="",
        date="2026-11-26",
    ),
)  # fmt: skip


def why_it_does_not_pay(product: str, work: Multiply, machine: Machine) -> str | None:
    """Return why the native product of that name is no faster than emulation, None if it may be."""
    reasons = (limit.refuses(work, machine) for limit in LIMITS if limit.product == product)
    return next((reason for reason in reasons if reason is not None), None)
