"""Training a small Llama on several processes, and the same steps on one."""

from __future__ import annotations

import datetime
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from qgraph.doors.jit import compile, coverage
from qgraph.doors.parallel import alone_as
from qgraph.errors import RunError
from qgraph.policy import Policy

ENGINES = ("ddp", "fsdp", "tp")
RATE = 0.1
STEPS = "steps.pt"
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine, one policy, so many processes and steps; `seconds` is a collective's patience."""

    engine: str
    policy: Policy
    world: int
    steps: int
    codegen: bool = False
    layers: int = 2
    seconds: float = 120.0


@dataclass(kw_only=True)
class Step:
    """One step: the weights before it, each process's loss, and the weights after it."""

    before: dict[str, Tensor]
    losses: list[float]
    after: dict[str, Tensor]


def make_model(layers: int = 2) -> LlamaForCausalLM:
    """Return the model: that many blocks, hidden size 64, four heads, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model: LlamaForCausalLM = LlamaForCausalLM(config).train()
    return model


def make_batch(step: int, rows: int) -> Tensor:
    """Return the tokens of a step, [rows, 16]."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, 96, (rows, 16), generator=generator)


def rows_of(case: Case) -> int:
    """Return the rows of a whole batch: two for each process that has a part of it."""
    return 2 * case.world if case.engine != "tp" else 4


def work(rank: int, case: Case, folder: Path) -> None:
    """Be process `rank` of a distributed run; the first writes its steps to `STEPS` in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=case.world,
        timeout=datetime.timedelta(seconds=case.seconds),
    )
    model = make_model(case.layers)
    call = _distribute(model, case)
    compiled = call if case.engine == "ddp" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    found = []
    for number in range(case.steps):
        before = _weights(model)
        batch = make_batch(number, rows_of(case))
        mine = batch if case.engine == "tp" else batch.chunk(case.world)[rank]
        torch.manual_seed(number)
        loss = call(input_ids=mine, labels=mine).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses = [torch.zeros(()) for _ in range(case.world)]
        dist.all_gather(losses, loss.detach().float())
        found.append(Step(before=before, losses=[float(x) for x in losses], after=_weights(model)))
    if not coverage(compiled if isinstance(compiled, type(model)) else model).quantized and (
        case.policy.quantizes
    ):
        raise RunError(f"{case.engine}: nothing was quantized")
    if rank == 0:
        torch.save([vars(step) for step in found], folder / STEPS)
    dist.barrier()
    dist.destroy_process_group()


def _distribute(model: LlamaForCausalLM, case: Case) -> Any:
    if case.engine == "ddp":
        compile(model, case.policy, codegen=case.codegen)
        return nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (case.world,))
    if case.engine == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        plan: dict[str, Any] = {
            f"model.layers.*.self_attn.{n}": ColwiseParallel() for n in COLUMNS[:3]
        }
        plan |= {f"model.layers.*.mlp.{n}": ColwiseParallel() for n in COLUMNS[3:]}
        plan["model.layers.*.self_attn.o_proj"] = RowwiseParallel()
        plan["model.layers.*.mlp.down_proj"] = RowwiseParallel()
        parallelize_module(model, mesh, plan)
    compile(model, case.policy, codegen=case.codegen)
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return every weight whole."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


class OneProcess:
    """The same steps on this process alone: a part of the batch after the other."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._models = [
            self._make(stream) for stream in range(1 if case.engine == "tp" else case.world)
        ]
        self.noise = 0.0  # how much the sums that tensor parallelism splits are off, in roundings

    def _make(self, stream: int) -> tuple[LlamaForCausalLM, int]:
        model = make_model(self._case.layers)
        if self._case.engine == "fsdp":
            # FSDP's hooks end a graph before and after each block: so do these.
            for module in (model, *model.model.layers):
                module.register_forward_pre_hook(torch.compiler.disable(_nothing))
                module.register_forward_hook(torch.compiler.disable(_nothing))
        if self._case.engine == "tp":
            for name, module in model.named_modules():
                if name.endswith(ROWS):
                    module.register_forward_hook(self._disturb)
        return compile(model, self._case.policy, codegen=self._case.codegen), stream

    def step(
        self, number: int, before: dict[str, Tensor], seed: int | None = None
    ) -> tuple[list[float], list[dict[str, Tensor]]]:
        """Return each part's loss and gradients, from the weights `before`."""
        parts = make_batch(number, rows_of(self._case)).chunk(len(self._models))
        losses, gradients = [], []
        for (model, stream), part in zip(self._models, parts, strict=True):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(before[name])
            torch.manual_seed(number if seed is None else seed)
            with alone_as(stream) if self._case.engine != "tp" else nullcontext():
                loss = model(input_ids=part, labels=part).loss
                loss.backward()
            losses.append(float(loss.detach()))
            found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            gradients.append({name: grad.clone() for name, grad in found.items()})
            model.zero_grad()
        return losses, gradients

    @contextmanager
    def disturbed(self, seed: int) -> Iterator[None]:
        """Move every sum that is split by as much as the order of its terms may: K roundings of it."""
        self._generator = torch.Generator().manual_seed(seed)
        self.noise = 1.0
        try:
            yield
        finally:
            self.noise = 0.0

    def _disturb(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.noise == 0.0:
            return output
        moved: Tensor = _MOVED(module, inputs[0], output, self._generator)
        return moved


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _moved(module: Any, x: Tensor, output: Tensor, generator: torch.Generator) -> Tensor:
    size = x.shape[-1] * 2.0**-24
    with torch.no_grad():
        # |sum of |x w|| <= |x| |w|, by Cauchy and Schwarz
        bound = size * x.norm(dim=-1, keepdim=True) * module.weight.norm(dim=-1)
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
    moved: Tensor = output + bound * signs
    return moved


_MOVED: Any = torch.compiler.disable(_moved)


def run_processes(
    case: Case, folder: Path, worker: Callable[..., None], count: int, *more: object
) -> None:
    """Run `worker(number, case, folder, *more)` in `count` forks of this process, to their end.

    This process itself must not have computed anything with torch: its threads are not in a fork.

    Raises: RunError if one fails, or does not end in `case.seconds` and as long again.
    """
    mp: Any = importlib.import_module(
        "torch.multiprocessing"
    )  # it names what it exports to no checker

    context = mp.start_processes(
        worker, args=(case, folder, *more), nprocs=count, join=False, start_method="fork"
    )
    try:
        deadline = time.monotonic() + 2 * case.seconds
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                raise RunError(f"{case.engine} on {count} processes did not end in time")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        last = str(error).strip().splitlines()[-1]
        raise RunError(f"{case.engine}, process {error.error_index}: {last}") from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
