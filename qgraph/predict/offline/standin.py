"""Stand-ins for a GPU that is not there, in one `with` block that puts everything back.

Inside it Inductor generates the code it would run on the target: torch.cuda, Dynamo's device
interface and Triton's driver answer with the target's properties. Nothing can run there.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._subclasses import FakeTensor, FakeTensorMode

from qgraph.ops import Device, forget_machines

# What torch remembers about the device it found: forgotten on the way in and on the way out.
_CACHES = (
    "torch.utils._triton",
    "torch._inductor.codegen.cuda.cuda_env",
    "torch._inductor.kernel.mm._is_sm7x_or_older_gpu",
    "torch._inductor.runtime.hints.DeviceProperties.create",
    "torch._inductor.utils._rocm_native_device_arch_name",
    "torch._inductor.utils._triton_supported_fp8_dtypes",
    "torch._inductor.utils.get_device_tflops",
    "torch._inductor.utils.get_gpu_dram_gbps",
    "torch._inductor.utils.get_gpu_type",
    "torch._inductor.utils.get_max_num_sms",
    "torch._inductor.utils.is_big_gpu",
)

# What torch.version says of a build for this maker's GPUs.
_TOOLKITS = {
    False: (("cuda", "13.0"), ("hip", None)),
    True: (("cuda", None), ("hip", "7.0.0")),
}

# Methods of torch.Tensor that ask for the device before they dispatch; the ops themselves do not.
_METHODS = {
    "__invert__": lambda self: torch.bitwise_not(self),
    "copy_": lambda self, source, non_blocking=False: torch.ops.aten.copy_(self, source),
}


@contextmanager
def standing_in(chip: Device) -> Iterator[None]:
    """Let torch and Triton see one device of this kind; restore everything at the end, errors too."""
    from torch._inductor.runtime import triton_helpers
    from triton.runtime import driver

    with ExitStack() as stack:
        stack.callback(_forget)
        for name, value in _cuda_answers(chip).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in _TOOLKITS[chip.amd]:
            stack.enter_context(mock.patch.object(torch.version, name, value))
        interface = {"cuda": _interface(chip), "cuda:0": _interface(chip)}
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, interface))
        stack.enter_context(mock.patch.object(device_interface, "_device_initialized", True))
        stack.enter_context(mock.patch.object(driver, "_active", _Driver(chip)))
        # Fake tensors must go on knowing that there is no device.
        absent = property(lambda _: True)
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", absent))
        stack.enter_context(mock.patch.object(triton_helpers, "set_driver_to_gpu"))
        for name, method in _METHODS.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, method, create=True))
        _forget()
        yield


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


def _interface(chip: Device) -> type[device_interface.CudaInterface]:
    class Worker(device_interface.CudaInterface.Worker):
        current_device = staticmethod(lambda: 0)
        set_device = staticmethod(lambda device: None)
        get_device_properties = staticmethod(lambda device=None: _properties(chip))

    answers = {
        "Worker": Worker,
        "is_triton_capable": staticmethod(lambda device=None: True),
        "raise_if_triton_unavailable": staticmethod(lambda device=None: None),
        "get_compute_capability": staticmethod(lambda device=None: chip.triton_arch),
        "exchange_device": staticmethod(lambda device: 0),
        "maybe_exchange_device": staticmethod(lambda device: 0),
        "set_device": staticmethod(lambda device: None),
        **{name: staticmethod(value) for name, value in _cuda_answers(chip).items()},
    }
    return type("StandIn", (device_interface.CudaInterface,), answers)


def _forget() -> None:
    """Empty the caches of what the device can do, in the modules that are loaded."""
    forget_machines()
    for name in _CACHES:
        home, _, last = name.rpartition(".")
        module = sys.modules.get(name)
        if module is not None:
            found = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
        else:
            owner: Any = sys.modules.get(home)
            if owner is None and (parent := sys.modules.get(home.rpartition(".")[0])):
                owner = getattr(parent, home.rpartition(".")[2], None)
            found = [getattr(owner, last)] if hasattr(owner, last) else []
        for cached in found:
            cached.cache_clear()
