"""Several processes: equal to one under each engine; a dead one ends the others with a clear message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qgraph.errors import RunError
from qgraph.training.processes import told_of_lost_processes
from tests.cases import mostly_full

ROOT = Path(__file__).parents[2]
# A range of the tensor for each kind of operand, random bits, and redrawn signs.
TEXT = """
qgraph: 1
name: parts
formats:
  fp8: {element: e4m3, block: tensor, scale: fp32}
  fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}
transforms:
  rht: {hadamard: 16, signs: step}
rules:
  - match: {op: linear}
    fprop: {input: fp4, weight: fp8}
    dgrad: {grad_output: fp4, weight: fp8}
    wgrad: {input: {format: fp4, transform: rht}, grad_output: {format: fp4, transform: rht ROUNDING}}
"""


@pytest.mark.parametrize("engine", mostly_full(("ddp", "fsdp", "tp"), ("fsdp",)))
def test_two_processes_are_one(engine: str, tmp_path: Path) -> None:
    # Data parallel, random bits are reproduced too; under tensor parallelism those of parts are others.
    rounding = "" if engine == "tp" else ", rounding: stochastic"
    text = TEXT.replace(" ROUNDING", rounding)
    if engine != "tp":
        text += f"stash: [{{format: bfp8{rounding}}}]\n"
    (tmp_path / "policy.yaml").write_text(text)
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.harness.parity", "--engine", engine, "--policy",
            str(tmp_path / "policy.yaml"), "--steps", "2", "--layers", "1", "--json",
        ],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    (found,) = json.loads(done.stdout)
    assert found["holds"]
    assert found["loss"] <= found["loss_bound"]
    assert (found["loss_bound"] == 0) == (engine != "tp")
    assert found["loss_bound"] < 1e-3  # a range that is not shared moves the loss more than that


WORKER = """
import datetime, os, sys
import torch, torch.distributed as dist
from qgraph.errors import RunError
from qgraph.training.processes import told_of_lost_processes
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
dist.barrier()
if dist.get_rank() == 1:
    os._exit(9)
try:
    with told_of_lost_processes("start it again, with --resume"):
        for _ in range(3):
            dist.all_reduce(torch.ones(4))
except RunError as error:
    print(error)
    os._exit(1)
"""


def test_a_dead_process_is_told_to_the_others() -> None:
    port = str(20000 + os.getpid() % 9999)
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **own}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said, _ = runs[0].communicate(timeout=120)
        assert runs[0].returncode == 1
        assert "rank 0 of 2: another process died or stopped answering" in said
        assert "fix: start it again, with --resume" in said
        assert runs[1].wait(timeout=30) == 9
    finally:
        for run in runs:
            run.kill()


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="shapes"), told_of_lost_processes("again"):
        raise RuntimeError("shapes do not match")
    with pytest.raises(RunError, match="died or stopped"), told_of_lost_processes("again"):
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4711")
