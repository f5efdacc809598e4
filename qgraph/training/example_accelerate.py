"""The same loop with accelerate: accelerate launch -m qgraph.training.example_accelerate.

Compile before `prepare`; a step is done when gradients are synchronized.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import qgraph
from qgraph.models import load_model
from qgraph.policy import load_policy_text
from qgraph.training.example_loop import POLICY
from qgraph.training.text import Windows, read_text, tokenize


def train_with_accelerate(
    steps: int = 50, source: str = "preset:tiny-llama", **options: Any
) -> list[float]:
    """Train for `steps` steps; return the losses. `options` go to `qgraph.compile`."""
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    rows = Windows(tokenize(read_text(None), source, 256), 128)
    model = qgraph.compile(load_model(source), load_policy_text(POLICY), **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = qgraph.Run(model, steps=steps, say=accelerator.print)
    wrapped, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(rows, batch_size=4, shuffle=True)
    )
    losses: list[float] = []
    for batch in loader:
        with accelerator.accumulate(wrapped):
            loss = wrapped(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            run.step()  # the loss is the mean over the micro-batches, as the model gave them
            losses.append(loss.item())
        if len(losses) == steps or run.stopped:
            break
    run.close()
    return losses


if __name__ == "__main__":
    print(f"loss {train_with_accelerate()[-1]:.3f}")
