"""A plain PyTorch loop: python -m qgraph.training.example_loop.

One line more than without qgraph (`qgraph.Run`), and one a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

import qgraph
from qgraph.models import load_model
from qgraph.policy import load_policy_text
from qgraph.training.text import Windows, read_text, tokenize

# MXFP8 everywhere; the last 20% of the run with a forward in high precision.
POLICY = """\
qgraph: 1
name: mxfp8-late
rules:
  - {match: {module: lm_head}, keep: high}
  - match: {op: linear}
    fprop: {input: mxfp8, weight: mxfp8}
    dgrad: {grad_output: mxfp8, weight: mxfp8}
    wgrad: {input: mxfp8, grad_output: mxfp8}
schedule:
  - {at: 80%, set: {fprop: high}}
monitors:
  - {watch: loss_spike, action: stop}
"""


def train_in_a_loop(
    steps: int = 50, source: str = "preset:tiny-llama", **options: Any
) -> list[float]:
    """Train for `steps` steps; return the losses. `options` go to `qgraph.compile`."""
    rows = Windows(tokenize(read_text(None), source, 256), 128)
    loader = DataLoader(rows, batch_size=8, shuffle=True)
    model = qgraph.compile(load_model(source), load_policy_text(POLICY), **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    run = qgraph.Run(model, steps=steps, telemetry=10, table=True)
    losses = []
    for _, batch in zip(range(steps), loader, strict=False):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step(loss)
        losses.append(loss.item())
        if run.stopped:
            break
    run.close()
    return losses


if __name__ == "__main__":
    print(f"loss {train_in_a_loop()[-1]:.3f}")
