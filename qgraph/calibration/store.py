"""What calibration found, beside a model: calibration.safetensors, by module and name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from qgraph.calibration.solve import Calibrated

FILE = "calibration.safetensors"


def write_tensors(found: Sequence[Calibrated], folder: Path) -> None:
    """Write every tensor that the steps found as `MODULE.METHOD.NAME`; a later step replaces an earlier."""
    tensors: dict[str, Tensor] = {
        f"{one.module}.{one.method}.{name}": value.contiguous()
        for one in found
        for name, value in one.tensors.items()
    }
    save_file(tensors, folder / FILE)
