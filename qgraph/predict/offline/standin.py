"""Stand-ins for a GPU that is not there, in one `with` block that puts everything back.

Inside it Inductor generates the code it would run on the target: torch.cuda, Dynamo's device
interface and Triton's driver answer with the target's properties. Nothing can run there.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from qgraph.compat import standin
from qgraph.ops import Device, forget_machines

# What torch.version says of a build for this maker's GPUs.
_TOOLKITS = {
    False: (("cuda", "13.0"), ("hip", None)),
    True: (("cuda", None), ("hip", "7.0.0")),
}


@contextmanager
def standing_in(chip: Device) -> Iterator[None]:
    """Let torch and Triton see one device of this kind; restore everything at the end, errors too."""
    answers = _cuda_answers(chip)
    with ExitStack() as stack:
        stack.callback(_forget)
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in _TOOLKITS[chip.amd]:
            stack.enter_context(mock.patch.object(torch.version, name, value))
        stack.enter_context(standin.seen(answers, chip.triton_arch, _Driver(chip)))
        _forget()
        yield


def _forget() -> None:
    standin.forget()
    forget_machines()


class _Driver:
    """Triton's driver, as far as compiling asks it."""

    def __init__(self, chip: Device) -> None:
        self.chip = chip

    def get_current_target(self) -> Any:
        return self.chip.triton_target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda


def _cuda_answers(chip: Device) -> dict[str, Any]:
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: _properties(chip),
        "get_device_capability": lambda device=None: chip.capability,
        "get_device_name": lambda device=None: chip.title,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=0: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=0: None,
    }


def _properties(chip: Device) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name=chip.title,
        major=chip.capability[0],
        minor=chip.capability[1],
        multi_processor_count=chip.units,
        regs_per_multiprocessor=chip.registers,
        max_threads_per_multi_processor=chip.threads,
        max_threads_per_block=1024,
        warp_size=chip.warp,
        total_memory=int(chip.memory),
        shared_memory_per_block_optin=chip.shared,
        gcnArchName=chip.arch if chip.amd else "",
        L2_cache_size=chip.cache,
    )
