"""Which code runs the semantic ops on a device: stated in every report, so no fallback is silent."""

from __future__ import annotations

from qgraph.ops import cpu_build, gpu


def describe_lowering(device_type: str) -> str:
    """Return what computes `fake_quant` on devices of `device_type`, and why if it is the slow path."""
    if device_type == "cuda":
        why = gpu.why_unavailable()
        if why is not None:
            return f"reference ({why})"
        return (
            "triton kernels for floats in blocks of 16 or 32 or one tensor, reference for the rest"
        )
    if device_type != "cpu":
        return f"reference (no {device_type} kernels yet)"
    why = cpu_build.why_unavailable()
    return "cpu kernels" if why is None else f"reference ({why})"
