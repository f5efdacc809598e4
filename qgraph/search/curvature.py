"""The trace of the loss's second derivative with respect to each weight, by Hutchinson's estimator.

v·Hv averages to the trace for random signs v. Hv is the difference of two gradients a small step apart along
v, so that the captured step is all it takes; one v for all weights gives each weight's own trace.

Source: Hutchinson (1990); used to rank layers by HAWQ-V2, arXiv 1911.03852.
"""

from __future__ import annotations

import torch

from qgraph.search.replay import Replay

_STEP = 1e-2  # of the weights' root mean square


def hessian_traces(replay: Replay, probes: int, seed: int = 0) -> dict[str, float]:
    """Return the estimated trace for each matrix among the parameters, by name.

    Each probe runs the step twice.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes = {
        name: node for name, node in replay.parameters.items() if replay.values[node].dim() > 1
    }
    total = dict.fromkeys(nodes, 0.0)
    for _ in range(probes):
        signs = {
            name: torch.randint(0, 2, replay.values[node].shape, generator=generator) * 2 - 1
            for name, node in nodes.items()
        }
        steps = {
            name: _STEP * float(replay.values[node].float().square().mean().sqrt())
            for name, node in nodes.items()
        }
        step = max(min(steps.values(), default=0.0), 1e-6)
        sides = []
        for side in (step, -step):
            given = {node: replay.values[node] + side * signs[name] for name, node in nodes.items()}
            changed = replay.rerun([], given=given)
            sides.append({name: replay.gradients(changed)[name] for name in nodes})
        for name in nodes:
            difference = (sides[0][name].double() - sides[1][name].double()) / (2 * step)
            total[name] += float((difference * signs[name]).sum()) / probes
    return total
