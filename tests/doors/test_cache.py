"""No policy ever runs code that was compiled for another: in one process, and through caches on disk."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qgraph
from qgraph.compat import inductor
from qgraph.doors.jit import dynamo_backend
from qgraph.policy import load_policy
from tests.doors.capture import interpret
from tests.doors.mlp import MLP

pytestmark = pytest.mark.slow

POLICIES = ("nvfp4", "high", "nvfp4_naive")


def _model() -> MLP:
    torch.manual_seed(0)
    return MLP(48, 64, 32)


def _input() -> Tensor:
    return torch.randn(40, 48, generator=torch.Generator().manual_seed(1))


def _run(
    model: nn.Module, forward: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(output, gradient of the first weight) of one step under one seed."""
    torch.manual_seed(3)
    model.zero_grad()
    output = (model if forward is None else forward)(_input())
    torch.autograd.backward(output.square().sum())
    weight = next(model.parameters())
    assert weight.grad is not None
    return output.detach(), weight.grad.clone()


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Tensor, Tensor]]:
    """What each policy gives with no compiler's cache in sight."""
    found = {}
    for name in POLICIES:
        torch._dynamo.reset()
        model = _model()
        interpret(model, load_policy(name))
        found[name] = _run(model)
    for one, other in itertools.combinations(POLICIES, 2):
        assert not any(map(torch.equal, found[one], found[other]))
    return found


def test_models_of_one_class_keep_their_policies_apart(
    alone: dict[str, tuple[Tensor, Tensor]],
) -> None:
    model = _model()
    models = {name: qgraph.compile(deepcopy(model), name) for name in POLICIES}
    for name in (*POLICIES, *reversed(POLICIES)):
        assert all(map(torch.equal, _run(models[name]), alone[name])), name
    for name in POLICIES:
        assert qgraph.coverage(models[name]).graphs == 1
        assert bool(qgraph.coverage(models[name]).quantized) == (name != "high")


def test_a_model_compiled_again_follows_its_new_policy(
    alone: dict[str, tuple[Tensor, Tensor]],
) -> None:
    model = _model()
    for name in (*POLICIES, "nvfp4"):
        qgraph.compile(model, name)
        assert all(map(torch.equal, _run(model), alone[name])), name
        assert qgraph.coverage(model).policy.name == name


def test_the_registered_backend_keeps_policies_apart(
    alone: dict[str, tuple[Tensor, Tensor]],
) -> None:
    model = _model()
    compiled = {
        name: torch.compile(model, backend=dynamo_backend, options={"policy": name})
        for name in POLICIES
    }
    for name in (*POLICIES, *POLICIES):
        assert all(map(torch.equal, _run(model, compiled[name]), alone[name])), name


def test_a_model_past_dynamos_recompile_limit_is_not_silently_left_high() -> None:
    naive = load_policy("nvfp4_naive")
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(3):
            model = _model()
            qgraph.compile(model, naive)
            _run(model)
            assert len(qgraph.coverage(model).quantized) == 5


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(48, 32), lambda: nn.Sequential(nn.Linear(48, 32))]
)
def test_a_module_of_torchs_own_is_not_silently_left_high(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    plain = deepcopy(model)
    qgraph.compile(model, "nvfp4_naive")
    assert not torch.equal(_run(model)[0], plain(_input()))
    assert qgraph.coverage(model).quantized


Runs = dict[str, dict[str, Any]]
PROGRAM = """
import json, os, sys
from tests.doors.test_cache import run_each
for names in sys.argv[1:]:
    if os.fork() == 0:
        print(json.dumps(run_each(*names.split())), flush=True)
        os._exit(0)
    os.wait()
"""


def run_each(*names: str) -> Runs:
    """Run one step under each policy; return what it gave, and what came from the cache of graphs."""
    found = {}
    for name in names:
        inductor.count_anew()
        model = qgraph.compile(_model(), name)
        output, gradient = _run(model)
        hits, misses = inductor.served()
        found[name] = {
            "output": output.tolist(), "gradient": gradient.tolist(),
            "products": len(qgraph.coverage(model).entries),
            "quantized": len(qgraph.coverage(model).quantized),
            "hits": hits, "misses": misses,
        }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, Runs]:
    """What two processes, one after the other, got from one cache on disk, of graphs empty at first.

    They are forks of one that has imported what they need and computed nothing. What Inductor asked
    the C++ compiler of this machine, and machine code by its source, is there.
    """
    cache = tmp_path_factory.mktemp("inductor")
    for path in inductor.cache_folder().iterdir():
        if path.name not in ("fxgraph", "aotautograd"):
            (cache / path.name).symlink_to(path)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", PROGRAM, "nvfp4 high", "nvfp4_naive high nvfp4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    cold, warm = map(json.loads, done.stdout.splitlines())
    return cold, warm


def test_processes_that_share_a_cache_on_disk_keep_policies_apart(
    processes: tuple[Runs, Runs], alone: dict[str, tuple[Tensor, Tensor]]
) -> None:
    for found in processes:
        for name, run in found.items():
            # json keeps every digit of a float
            assert torch.equal(torch.tensor(run["output"]), alone[name][0]), name
            assert torch.equal(torch.tensor(run["gradient"]), alone[name][1]), name
            assert (run["products"], run["quantized"]) == (5, 0 if name == "high" else 5)


def test_the_cache_on_disk_serves_a_policy_it_has_seen(processes: tuple[Runs, Runs]) -> None:
    cold, warm = (
        {name: (run["hits"], run["misses"]) for name, run in runs.items()} for runs in processes
    )
    # A forward and a backward each.
    assert cold == {"nvfp4": (0, 2), "high": (0, 2)}
    assert warm == {"nvfp4_naive": (0, 2), "high": (2, 0), "nvfp4": (2, 0)}
