"""A policy's training step as it would run on a GPU: generated, compiled, counted; nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qgraph import ops
from qgraph.compat import inductor
from qgraph.doors import cut
from qgraph.errors import ModelError
from qgraph.models import Shapes, load_config, model_class
from qgraph.ops import Device, Launch, machine_of
from qgraph.passes import Entry, Report, graph_text, module_path, names_of, run_passes
from qgraph.policy import Policy
from qgraph.predict.capture import capture_step
from qgraph.predict.offline.codegen import KernelCall, generate
from qgraph.predict.offline.launches import compile_launch, launches_of
from qgraph.predict.offline.machine_code import MachineCode, compile_generated
from qgraph.predict.offline.retarget import move_to_gpu
from qgraph.predict.offline.roofline import Work, work_of
from qgraph.predict.offline.standin import standing_in


@dataclass(frozen=True, kw_only=True)
class LaunchedKernel:
    """One kernel or library call of the step; `count` of it are launched.

    `nodes` are the source nodes, `place` the module of the last one. `code` is missing for a
    library's kernels. Bytes and `work` are those of one launch.
    """

    name: str
    half: str  # forward or backward
    kind: str  # triton, qgraph or library
    nodes: tuple[str, ...]
    place: str
    count: int
    work: Work
    code: MachineCode | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A training step compiled for one GPU: forward and backward, without the optimizer."""

    policy: str
    kernels: tuple[LaunchedKernel, ...]
    products: tuple[Entry, ...] = field(repr=False)  # of the whole model
    parameters: int
    sources: Mapping[str, str] = field(repr=False)  # programs and graphs as text, by file name

    @property
    def seconds(self) -> float:
        """The roofline: no kernel is faster than its bytes or its operations at the peaks."""
        return sum(k.count * k.work.seconds for k in self.kernels)

    @property
    def launches(self) -> int:
        """How many kernels are launched."""
        return sum(k.count for k in self.kernels)

    @property
    def moved(self) -> int:
        """Bytes the kernels move."""
        return sum(k.count * k.work.moved for k in self.kernels)

    @property
    def minimum(self) -> int:
        """Bytes the kernels must move."""
        return sum(k.count * k.work.minimum for k in self.kernels)


def compile_step(
    name: str,
    policy: Policy,
    chip: Device,
    *,
    batch: int,
    length: int,
    machine_code: bool = True,
    compiled: dict[str, MachineCode] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CompiledStep:
    """Generate and compile the training step of the model called `name` for `chip`.

    Without `machine_code` kernels are generated and counted, not compiled: a tenth of the time.
    `compiled` holds kernels compiled for this chip before, and is added to.

    Raises: ModelError if Triton is missing, or as `load_config` and `capture`.
    """
    check_triton()
    say(f"{policy.name}: capturing {name}")
    config = load_config(name)
    kind = model_class(name, config)
    shapes, captured = capture_step(kind, config, policy, batch=batch, length=length)
    move_to_gpu(captured.graph)
    report = Report(policy=policy)
    with standing_in(chip):
        step = captured.step(target="native")
        report.add(run_passes(step, names_of("joint", "lower", "watch")))
    sources = {"joint_graph.txt": graph_text(captured.graph, captured.facts.modules)}
    kernels: list[LaunchedKernel] = []
    compiler = _Compiler(
        chip=chip,
        shapes=shapes,
        modules=captured.facts.modules,
        machine_code=machine_code,
        compiled={} if compiled is None else compiled,
    )
    with inductor.fresh_cache(), standing_in(chip):
        forward, backward, _ = cut(captured.joint_module)
        for half, module in (("forward", forward), ("backward", backward)):
            say(f"{policy.name}: generating the {half}")
            program = generate(module, backward=half == "backward")
            sources[f"{half}.py"] = program.text
            if machine_code:
                say(f"{policy.name}: compiling the {half}, {len(program.calls)} calls")
            for call in program.calls:
                kernels += compiler.kernels(call, half)
    return CompiledStep(
        policy=policy.name,
        kernels=tuple(kernels),
        products=tuple(entry for entry in report.entries for _ in shapes.stands(entry.module)),
        parameters=sum(shapes.parameters.values()),
        sources=sources,
    )


def check_triton() -> None:
    """Raise ModelError if Triton is not installed."""
    try:
        import triton  # noqa: F401
    except ImportError:
        raise ModelError(
            "compiling for a GPU needs Triton, which is not installed", "pip install triton"
        ) from None


@dataclass(frozen=True, kw_only=True)
class _Compiler:
    """Turns the calls of a program into kernels; each different one is compiled once."""

    chip: Device
    shapes: Shapes
    modules: Mapping[str, str]
    machine_code: bool
    compiled: dict[str, MachineCode]

    def kernels(self, call: KernelCall, half: str) -> list[LaunchedKernel]:
        places = [path for node in call.origins if (path := module_path(node, self.modules))]
        place = places[-1] if places else ""
        common: dict[str, Any] = {
            "half": half,
            "nodes": tuple(node.name for node in call.origins),
            "place": place,
            "count": len(self.shapes.stands(place)),
        }
        bandwidth = self.chip.bandwidth
        work = Work(minimum=call.minimum, moved=call.moved, bandwidth=bandwidth)
        if call.source:
            key = call.source.replace(call.name, "")  # the same code has other names elsewhere
            code = self._code(key, lambda: compile_generated(call.source, call.name, self.chip))
            return [LaunchedKernel(name=call.name, kind="triton", work=work, code=code, **common)]
        if call.name == "qgraph.seed.default":
            return []  # drawn on the CPU
        if call.name.startswith("qgraph.") and call.node.target is not ops.scaled_mm:
            launches, note = launches_of(call.node, machine_of(self.chip))
            if launches:
                return [self._launched(launch, common) for launch in launches]
            return [
                LaunchedKernel(
                    name=call.name, kind="qgraph", work=work, code=None, note=note, **common
                )
            ]
        work, note = work_of(call, self.chip)
        return [
            LaunchedKernel(
                name=call.name, kind="library", work=work, code=None, note=note, **common
            )
        ]

    def _launched(self, launch: Launch, common: dict[str, Any]) -> LaunchedKernel:
        key = repr((launch.name, launch.signature, launch.constants))
        code = self._code(key, lambda: compile_launch(launch, self.chip))
        work = Work(
            minimum=launch.minimum,
            moved=launch.moved,
            bandwidth=self.chip.bandwidth,
            flops=launch.flops,
            kind=launch.unit if launch.flops else "",
            rate=self.chip.peaks[launch.unit] if launch.flops else 0.0,
        )
        name = f"qgraph_{launch.name}"
        return LaunchedKernel(name=name, kind="qgraph", work=work, code=code, **common)

    def _code(self, key: str, make: Callable[[], MachineCode]) -> MachineCode | None:
        if not self.machine_code:
            return None
        if key not in self.compiled:
            self.compiled[key] = make()
        return self.compiled[key]
