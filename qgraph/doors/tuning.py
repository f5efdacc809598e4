"""What torch.compile takes beside a backend: held at the call, not at the first step."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from qgraph.compat import inductor
from qgraph.errors import ModelError


def check_options(options: Mapping[str, Any], *, codegen: bool) -> None:
    """Check what is passed on to torch.compile: `dynamic`, `fullgraph`, `mode`, `options` and so on.

    Raises: ModelError if torch.compile has none of a name, Inductor knows no such mode or option, there is
        no code to tune, or nothing would be compiled.
    """
    known = [*inspect.signature(torch.compile).parameters]
    for name in options:
        if name not in known[1:]:
            near = difflib.get_close_matches(name, known, n=1)
            raise ModelError(
                f"qgraph.compile has no argument '{name}', nor has torch.compile",
                f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(known[1:])}",
            )
    if "backend" in options:
        raise ModelError("qgraph.compile chooses the backend itself", "leave backend out")
    if options.get("disable"):
        raise ModelError(
            "disable=True compiles nothing, and nothing would be quantized",
            "leave disable out, or use the policy 'high'",
        )
    mode, settings = options.get("mode"), options.get("options")
    if inductor.settings_of(mode, settings) and not codegen:
        asked = f"mode='{mode}'" if mode else "options"
        raise ModelError(
            f"codegen=False runs op by op: there is no code that {asked} could tune",
            f"leave {asked.split('=')[0]} out, or codegen",
        )
