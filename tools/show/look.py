"""What the looking commands look at: a converted directory, or a model under a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.errors import ArtifactError
from qgraph.models import read_json
from qgraph.policy import Policy, load_policy

if TYPE_CHECKING:
    from qgraph.passes import Entry, Report

HIGH = "high"


@dataclass(frozen=True, kw_only=True)
class Look:
    """One plan, with its graphs as text; `before` and `after` are empty where none were kept."""

    source: str
    report: Report
    inputs: dict[str, list[int]]
    before: str
    after: str

    @property
    def policy(self) -> Policy:
        """The policy the plan is of."""
        return self.report.policy

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every product."""
        return self.report.entries

    @property
    def flops(self) -> int:
        """The FLOPs of all products of one step."""
        return sum(entry.flops for entry in self.entries)


def is_artifact(source: str) -> bool:
    """Whether `source` is a directory that holds a plan: of `qgraph convert`, or a trained model."""
    path = Path(source).expanduser()
    return (path / "report.json").is_file() and (path / "policy.yaml").is_file()


def is_run(source: str) -> bool:
    """Whether `source` is what `qgraph train --out` wrote."""
    return (Path(source).expanduser() / "losses.json").is_file()


def look_at(
    source: str,
    policy: str | None,
    batch: int,
    length: int,
    step: Callable[[str], None],
) -> Look:
    """Return the plan of a converted directory as it stands there, or of a model captured under `policy`.

    A converted directory with a policy of one's own is a model. Without a policy a model is left high.

    Raises: ArtifactError if a directory's plan is damaged; else as `qgraph convert`.
    """
    if policy is None and is_run(source) and not is_artifact(source):
        raise ArtifactError(
            f"{source}: is a training run, which holds several models",
            f"give one: {_models(source)}",
        )
    if policy is None and is_artifact(source):
        return _read(source, step)
    chosen = load_policy(policy or HIGH)
    step("loading torch")
    import transformers

    from qgraph.doors import analyze
    from qgraph.models import load_shapes

    transformers.utils.logging.disable_progress_bar()
    step(f"building {source}, without its weights")
    shapes = load_shapes(source)
    step("capturing the training step")
    found = analyze(shapes.model, chosen, shapes.inputs(batch, length))
    return Look(
        source=source,
        report=found.report,
        inputs=found.inputs,
        before=found.graph_before,
        after=found.graph_after,
    )


def read_plan(source: str) -> tuple[dict[str, Any], Policy]:
    """Return report.json and the policy of a converted directory, read without torch.

    Raises: ArtifactError if report.json is damaged; PolicyError if the policy is.
    """
    path = Path(source).expanduser()
    policy = load_policy(path / "policy.yaml")
    try:
        data = read_json(path / "report.json")
    except (OSError, ValueError) as error:
        raise _damaged(path / "report.json", str(error)) from error
    if data.get("fingerprint") != policy.fingerprint():
        raise _damaged(path / "policy.yaml", "not the policy that report.json speaks of")
    return data, policy


def _read(source: str, step: Callable[[str], None]) -> Look:
    data, policy = read_plan(source)
    step(f"reading {source}")
    from qgraph.passes import read_report

    path = Path(source).expanduser()
    try:
        report = read_report(data, policy)
    except ValueError as error:
        raise _damaged(path / "report.json", str(error)) from error
    texts = [path / f"graph_{name}.txt" for name in ("before", "after")]
    before, after = (f.read_text(encoding="utf-8") if f.is_file() else "" for f in texts)
    return Look(
        source=source, report=report, inputs=data.get("inputs", {}), before=before, after=after
    )


def _damaged(file: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{file}: cannot be read: {why}", "convert the model again")


def _models(source: str) -> str:
    path = Path(source).expanduser()
    return ", ".join(sorted(str(f.parent) for f in path.glob("*/config.json"))) or source
