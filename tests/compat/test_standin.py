"""The stand-ins for a GPU answer as the GPU would, and leave nothing behind."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch._dynamo import device_interface
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._triton import has_triton

from qgraph.ops import DEVICES, at_hand, find_device, machine_of
from qgraph.predict.offline.standin import standing_in

triton = pytest.importorskip("triton")
GPU = torch.device("cuda", 0)


def answers() -> dict[str, Any]:
    """Everything the stand-ins replace."""
    driver = triton.runtime.driver
    return {
        "available": torch.cuda.is_available(),
        "count": torch.cuda.device_count(),
        "functions": tuple(vars(torch.cuda)[name] for name in ("is_available", "get_rng_state")),
        "versions": (torch.version.cuda, torch.version.hip),
        "driver": driver._active,
        "triton": has_triton(),
        "interface": dict(device_interface.device_interfaces),
        "initialized": device_interface._device_initialized,
        "fake": (FakeTensor.__dict__.get("copy_"), FakeTensor.__dict__.get("__invert__")),
        "absent": FakeTensorMode.__dict__["avoid_device_init"],
    }


@pytest.mark.parametrize("name", DEVICES)
def test_they_answer_as_the_target_and_everything_is_as_before(name: str) -> None:
    chip, before = find_device(name), answers()
    with standing_in(chip):
        assert torch.cuda.is_available()
        assert has_triton()
        assert torch.cuda.get_device_capability() == chip.capability
        assert torch.cuda.get_device_properties(0).multi_processor_count == chip.units
        assert bool(torch.version.hip) == chip.amd
        # What kernels are asked about is the row of the table.
        assert asdict(at_hand("cuda")) == asdict(machine_of(chip))
        # Cached by Inductor: the one before must be forgotten.
        found = DeviceProperties.create(GPU)
        assert (found.cc, found.multi_processor_count) == (chip.triton_arch, chip.units)
        assert triton.runtime.driver.active.get_current_target().arch == chip.triton_arch
    assert answers() == before
    assert at_hand("cuda").capability == (0, 0) or torch.cuda.is_available()


def test_an_exception_inside_restores_too() -> None:
    before = answers()
    with pytest.raises(KeyError), standing_in(find_device("b200")):
        raise KeyError("inside")
    assert answers() == before


def test_capabilities_are_read_from_the_architecture() -> None:
    found = {name: find_device(name).capability for name in DEVICES}
    assert found == {
        "a100": (8, 0), "h100": (9, 0), "b200": (10, 0), "rtx5090": (12, 0), "mi355x": (9, 5),
    }  # fmt: skip
