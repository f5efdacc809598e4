"""The key `calibrate`: what is looked for in data before a model is converted or trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, create_model

from qgraph.policy.file.document import Path
from qgraph.policy.file.entry import FileEntry, optional, value_fault
from qgraph.policy.file.words import flow_text
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.groups import EVERYWHERE, ModulesEntry, modules_entry, modules_text

_STEPS = range(2, 101)


@dataclass(frozen=True, kw_only=True)
class CalibrationStep:
    """One method, its options by name, and the modules it looks at; steps are taken in order."""

    method: str
    modules: tuple[str, ...] = EVERYWHERE
    options: Mapping[str, Any]

    @property
    def facts(self) -> dict[str, object]:
        """All that changes numbers."""
        return {self.method: {**self._written, "modules": sorted(set(self.modules))}}

    @property
    def entry(self) -> dict[str, object]:
        """The step as a policy file writes it."""
        return {self.method: {**modules_entry(self.modules), **self._written}}

    @property
    def text(self) -> str:
        """The step in one line."""
        options = ", ".join(f"{name} {value}" for name, value in self._written.items())
        return f"{self.method}{modules_text(self.modules)}" + (f" ({options})" if options else "")

    @property
    def _written(self) -> dict[str, object]:
        """The options in words that a policy file takes."""
        return {
            name: f"{value:g}" if isinstance(value, float) else value
            for name, value in self.options.items()
        }


def _steps(value: object) -> int:
    if not isinstance(value, int) or value not in _STEPS:
        fix = f"write {_STEPS.start} to {_STEPS.stop - 1}"
        raise value_fault(f"'{value}' is no number of ratios to try", fix)
    return value


def _ratio(value: object) -> float:
    text = value if isinstance(value, str) else ""
    found = re.fullmatch(r"(0\.[0-9]{1,4})|([0-9]{1,2}(?:\.[0-9]{1,2})?) ?%", text)
    ratio = Fraction(found[1] or Fraction(found[2]) / 100) if found else Fraction(0)
    if not 0 < ratio < 1:
        fix = "write a number above 0 and below 1 such as 0.5, or a percent such as 50%"
        raise value_fault(f"'{value}' is no ratio to clip at", fix)
    return float(ratio)


class ClipEntry(ModulesEntry):
    """Clipping: the ratio of its range at which a tensor is clipped with the least error."""

    example: ClassVar[object] = {"steps": 20}
    steps: Annotated[
        int,
        PlainValidator(_steps),
        WithJsonSchema({"type": "integer", "minimum": _STEPS.start, "maximum": _STEPS.stop - 1}),
    ] = optional("How many ratios are tried, in equal steps from lowest to 1.", 20, 20)
    lowest: Annotated[
        float, PlainValidator(_ratio), WithJsonSchema({"type": ["number", "string"]})
    ] = optional("The smallest ratio tried, as a number or a percent.", 0.5, 0.5)


# What each method takes.
METHODS: Mapping[str, type[ModulesEntry]] = {"clip": ClipEntry}

_FIELDS: dict[str, Any] = {
    method: (entry | None, optional(str(entry.__doc__), entry.example))
    for method, entry in METHODS.items()
}
CalibrationEntry: Any = create_model(
    "CalibrationEntry",
    __base__=FileEntry,
    __doc__="One step: a method and what it takes.",
    **_FIELDS,
)


def _resolve(entries: list[Any], reading: Reading) -> tuple[CalibrationStep, ...]:
    return tuple(_step(i, entry, reading) for i, entry in enumerate(entries))


def _step(index: int, entry: Any, reading: Reading) -> CalibrationStep:
    path: Path = ("calibrate", index)
    named = reading.document.words(path)
    if not named:
        method, known = next(iter(METHODS.items()))
        fix = f"write {flow_text({method: known.example})}"
        raise reading.document.fault(path, "it names no method", fix)
    if len(named) > 1:
        problem, fix = f"{' and '.join(named)} are two steps", "write each as a step of its own"
        raise reading.document.fault(path, problem, fix)
    (method,) = named
    options = getattr(entry, method).model_dump()
    modules = options.pop("modules")
    return CalibrationStep(
        method=method, modules=EVERYWHERE if modules is None else tuple(modules), options=options
    )


CALIBRATE_KEY: Key[tuple[CalibrationStep, ...]] = Key(
    module=__name__,
    name="calibrate",
    entry=Annotated[list[CalibrationEntry], Field(min_length=1)],
    description="What is looked for in data before a run, step by step.",
    example=[{"clip": {"steps": 20}}],
    default=[],
    resolve=_resolve,
    written=lambda steps, policy: [step.entry for step in steps] or None,
    numbers=lambda steps, policy: [step.facts for step in steps] or None,
    words=lambda steps, policy: [f"calibrate[{i}]: {s.text}" for i, s in enumerate(steps)],
)
