"""compile(mode=..., options=...): what Inductor then compiles under, and what is refused at the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import qgraph
from qgraph.compat import inductor
from qgraph.doors.jit import dynamo_backend
from qgraph.errors import ModelError
from qgraph.ops import define
from tests.doors.mlp import MLP

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a mode": ({"mode": "fastest"}, "unknown mode 'fastest'", "max-autotune-no-cudagraphs"),
    "a mode that opts out of passes": ({"mode": "lite"}, "unknown mode 'lite'", "reduce-overhead"),
    "an option": ({"options": {"max_autotun": True}}, "no option 'max_autotun'", "'max_autotune'?"),
    "an option of nothing": ({"options": {"x": 1}}, "no option 'x'", "list_options()"),
    "a type": ({"options": {"max_autotune": "yes"}}, "cannot be 'yes'", "write bool, as False"),
    "no mapping": ({"options": ["max_autotune"]}, "must be a mapping", "{"),
    "both": ({"mode": "default", "options": {}}, "mode and options", "give one"),
    "the rewrite": ({"options": {"joint_custom_pre_pass": None}}, "qgraph's own", "leave it out"),
    "the cut": ({"options": {"custom_partitioner_fn": None}}, "qgraph's own", "leave it out"),
    "guards": ({"options": {"guard_filter_fn": all}}, "drops guards", "leave it out"),
    "op by op, a mode": ({"mode": "max-autotune", "codegen": False}, "mode='max-autotune'", "mode"),
    "op by op, options": (
        {"options": {"max_autotune": True}, "codegen": False}, "that options could", "leave options",
    ),
    "not at all": ({"disable": True}, "compiles nothing", "high"),
    "an argument": ({"fulgraph": True}, "no argument 'fulgraph'", "'fullgraph'?"),
    "a backend": ({"backend": "inductor"}, "chooses the backend itself", "leave backend out"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_at_the_call(case: str) -> None:
    options, says, cure = REFUSED[case]
    model = MLP(16, 32, 16)
    with pytest.raises(ModelError) as caught:
        qgraph.compile(model, "mxfp8", **options)
    assert says in caught.value.problem
    assert cure in caught.value.fix
    with pytest.raises(ModelError, match="not compiled"):
        qgraph.coverage(model)


@pytest.mark.parametrize("options", [{"mode": "default"}, {"mode": None}, {"options": {}}])
def test_what_asks_for_nothing_runs_op_by_op(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = qgraph.compile(MLP(16, 32, 16), "mxfp8", codegen=False, **options)
    model(torch.randn(4, 16)).sum().backward()
    assert qgraph.coverage(model).quantized


@pytest.mark.parametrize("mode", inductor.MODES)
def test_a_mode_is_what_torch_says_it_is(mode: str) -> None:
    assert inductor.settings_of(mode, None) == inductor.list_mode_options(mode)


def test_a_cuda_graph_holds_no_op_of_ours() -> None:
    # It would replay the seed of the step it was made in.
    ours = [op for op in vars(define).values() if isinstance(op, torch._ops.OpOverload)]
    assert len(ours) > 20
    assert all(torch.Tag.cudagraph_unsafe in op.tags for op in ours)


class Seen:
    """A pass of the user's that notes the settings it runs under."""

    def __init__(self) -> None:
        self.settings: list[tuple[bool, str]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.settings.append(
            (inductor.config.epilogue_fusion, inductor.config.max_autotune_gemm_backends)
        )


def _step(
    model: Callable[[Tensor], Tensor], weights: torch.nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    output = model(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)))
    owner = weights or model
    assert isinstance(owner, torch.nn.Module)
    owner.zero_grad()
    torch.autograd.backward(output.square().sum())
    grad = next(owner.parameters()).grad
    assert grad is not None
    return output.detach(), grad.clone()


def _model() -> MLP:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return MLP(32, 64, 32)


@pytest.mark.slow
def test_inductor_compiles_under_the_options() -> None:
    expected = _step(qgraph.compile(_model(), "mxfp8"))
    seen = Seen()
    options: dict[str, Any] = {
        "post_grad_custom_post_pass": seen,
        "epilogue-fusion": False,
        "max_autotune_gemm_backends": "ATEN",
    }
    before = dict(options)
    found = _step(qgraph.compile(_model(), "mxfp8", options=options))
    assert seen.settings == [(False, "ATEN")] * 2  # forward and backward
    assert inductor.config.epilogue_fusion
    assert options == before
    assert all(map(torch.equal, found, expected))
    # The backend by its name, where the policy is one of the options.
    seen.settings.clear()
    compiled = torch.compile(
        _model(), backend=dynamo_backend, options={"policy": "mxfp8"} | options
    )
    assert all(map(torch.equal, _step(compiled), expected))
    assert seen.settings == [(False, "ATEN")] * 2


@pytest.mark.slow
def test_the_cache_serves_no_code_of_other_options() -> None:
    with inductor.fresh_cache():
        for options, served in (
            ({"epilogue_fusion": False}, False),
            ({"epilogue_fusion": True}, False),
            ({"epilogue_fusion": False}, True),
        ):
            inductor.count_anew()
            _step(qgraph.compile(_model(), "mxfp8", options=options))
            assert inductor.served() == ((2, 0) if served else (0, 2)), options


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("mode", inductor.MODES[1:])
def test_every_mode_trains(mode: str) -> None:
    expected = _step(qgraph.compile(_model(), "mxfp8"))
    model = qgraph.compile(_model(), "mxfp8", mode=mode)
    for value, plain in zip(_step(model), expected, strict=True):
        # Another kernel may sum in another order: n products of |a| |b| summed err by n eps of that sum.
        assert (value - plain).abs().max() <= 64 * 2.0**-24 * 8 * plain.abs().max()
    assert len(qgraph.coverage(model).quantized) == len(qgraph.coverage(model).entries)
