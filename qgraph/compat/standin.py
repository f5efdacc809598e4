"""Where torch and Triton ask for the device, besides `torch.cuda`: a stand-in answers there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo import device_interface
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# What torch remembers about the device it found: functions that remember, or modules full of them.
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

# Methods of torch.Tensor that ask for the device before they dispatch; the ops themselves do not.
_METHODS = {
    "__invert__": lambda self: torch.bitwise_not(self),
    "copy_": lambda self, source, non_blocking=False: torch.ops.aten.copy_(self, source),
}

Answers = Mapping[str, Callable[..., Any]]


@contextmanager
def seen(answers: Answers, architecture: int | str, driver: object) -> Iterator[None]:
    """Let Dynamo, Inductor and Triton see one device; fake tensors go on knowing that there is none.

    `answers` are those of `torch.cuda`'s functions, `architecture` is the device's as Triton names it,
    and `driver` answers as Triton's.
    """
    from torch._inductor.runtime import triton_helpers
    from triton.runtime.driver import driver as triton_driver

    absent = property(lambda _: True)
    interface = _interface(answers, architecture)
    known = {"cuda": interface, "cuda:0": interface}
    with (
        mock.patch.dict(device_interface.device_interfaces, known),
        mock.patch.object(device_interface, "_device_initialized", True),
        mock.patch.object(triton_driver, "_active", driver),
        mock.patch.object(FakeTensorMode, "avoid_device_init", absent),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
        ExitStack() as stack,
    ):
        for name, method in _METHODS.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, method, create=True))
        yield


def _interface(answers: Answers, architecture: int | str) -> type:
    """Return what Dynamo asks about devices."""
    properties = answers["get_device_properties"]

    class StandIn(device_interface.CudaInterface):
        is_triton_capable = staticmethod(lambda device=None: True)
        raise_if_triton_unavailable = staticmethod(lambda device=None: None)
        get_compute_capability = staticmethod(lambda device=None: architecture)
        exchange_device = staticmethod(lambda device: 0)
        maybe_exchange_device = staticmethod(lambda device: 0)
        set_device = staticmethod(lambda device: None)

        class Worker(device_interface.CudaInterface.Worker):
            current_device = staticmethod(lambda: 0)
            set_device = staticmethod(lambda device: None)
            get_device_properties = staticmethod(properties)

    for name, answer in answers.items():
        setattr(StandIn, name, staticmethod(answer))
    return StandIn


def forget() -> None:
    """Empty the caches of what the device can do, in the modules that are loaded."""
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
