"""The key `monitors`: numbers watched as a run goes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from qgraph.errors import Place
from qgraph.policy.file.document import Document, Path
from qgraph.policy.file.entry import FileEntry, optional, required, value_fault
from qgraph.policy.file.values import Steps
from qgraph.policy.file.words import one_line
from qgraph.policy.key import Key, Reading
from qgraph.policy.keys.rules import HasProducts

if TYPE_CHECKING:
    from qgraph.policy.model import Policy

Watch = Literal["loss_spike", "logit_sharpness", "wgrad_error"]
Action = Literal["warn", "stop"]
PLATEAU = "plateau"
# Steps between two looks, and the usual limit: standard deviations, percent, a share.
WATCHES: dict[Watch, tuple[int, float]] = {
    "loss_spike": (1, 7.0),
    "logit_sharpness": (50, 1.0),
    "wgrad_error": (50, 0.5),
}


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """One entry of `monitors`: a number watched as the run goes, and what to do above a limit.

    `loss_spike`: how many standard deviations the loss lies above the mean of `window` steps before.
    `logit_sharpness`: see `qgraph.training.signals`. `wgrad_error`: the largest relative error of a
    weight's gradient. Looked at every `every` steps.
    """

    number: int
    place: Place
    name: str
    watch: Watch
    above: float
    every: int
    window: int
    action: Action

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"monitors[{self.number - 1}]"

    @property
    def text(self) -> str:
        """The monitor in one line."""
        window = f" of {self.window} steps" if self.watch == "loss_spike" else ""
        often = "every step" if self.every == 1 else f"every {self.every} steps"
        return f"{self.name}: {self.watch}{window} above {self.above:g}, {often}: {self.action}"

    @property
    def entry(self) -> dict[str, object]:
        """The monitor as a policy file writes it."""
        entry: dict[str, object] = {
            "name": self.name,
            "watch": self.watch,
            "above": f"{self.above:g}",
            "every": self.every,
            "action": self.action,
        }
        return entry | ({"window": self.window} if self.watch == "loss_spike" else {})


def _limit(value: object) -> float:
    """Read a number: 7, 0.5 or 50%."""
    text = str(value) if isinstance(value, int | str) else ""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?(?:e-?[0-9]{1,2})?)( ?%)?", text)
    if not found:
        raise value_fault(f"'{value}' is no limit", "write a number such as 7 or 0.5, or a percent")
    return float(found[1]) / (100 if found[2] else 1)


Limit = Annotated[float, PlainValidator(_limit), WithJsonSchema({"type": ["number", "string"]})]


class MonitorEntry(FileEntry):
    """A number watched as a run goes."""

    watch: Watch = required(
        "loss_spike (standard deviations above the mean), logit_sharpness, wgrad_error (relative).",
        "loss_spike",
    )
    above: Limit | None = optional("The limit.", 7)
    every: Steps | None = optional("Steps between two looks.", 50)
    window: Steps = optional("loss_spike: how many steps the mean is of.", 100, 100)
    action: Action = optional("warn, or stop the run.", "warn", "warn")
    name: Annotated[str, Field(min_length=1)] | None = optional(
        "What a schedule calls it; left out, what it watches.", "spikes"
    )


def _resolve(entries: list[MonitorEntry], reading: Reading) -> tuple[Monitor, ...]:
    monitors = tuple(_monitor(i, entry, reading.document) for i, entry in enumerate(entries))
    for i, monitor in enumerate(monitors):
        if monitor.name == PLATEAU or monitor.name in {m.name for m in monitors[:i]}:
            problem = f"a second '{one_line(monitor.name)}'"
            raise reading.document.fault(("monitors", i), problem, "give it a name of its own")
    return monitors


def _monitor(index: int, entry: MonitorEntry, document: Document) -> Monitor:
    every, above = WATCHES[entry.watch]
    if entry.watch != "loss_spike" and "window" in document.words(("monitors", index)):
        problem = f"{entry.watch} has no window"
        raise document.fault(("monitors", index, "window"), problem, "remove it", at_key=True)
    return Monitor(
        number=index + 1,
        place=document.values["monitors", index],
        name=entry.name or entry.watch,
        watch=entry.watch,
        above=above if entry.above is None else entry.above,
        every=entry.every or every,
        window=entry.window,
        action=entry.action,
    )


def _check(monitors: tuple[Monitor, ...], policy: Policy, document: Document) -> None:
    """Hold each monitor against what the policy quantizes: without an error there is none to watch."""
    entries: tuple[HasProducts, ...] = (*policy.rules, *policy.schedule)
    wgrad = any(entry.products.get("wgrad") for entry in entries)
    for monitor in monitors:
        if monitor.watch == "wgrad_error" and not wgrad:
            path: Path = ("monitors", monitor.number - 1, "watch")
            fix = "quantize wgrad, or remove the monitor"
            raise document.fault(path, "no rule quantizes wgrad: there is no error to watch", fix)


def _numbers(monitors: tuple[Monitor, ...], policy: Policy) -> object:
    """Return what changes numbers: a switch may wait for a monitor."""
    return [monitor.entry for monitor in monitors] if policy.schedule else None


MONITORS_KEY: Key[tuple[Monitor, ...]] = Key(
    module=__name__,
    name="monitors",
    entry=Annotated[list[MonitorEntry], Field(min_length=1)],
    description="What to watch.",
    example=[{"watch": "loss_spike"}],
    default=[],
    resolve=_resolve,
    check=_check,
    written=lambda monitors, policy: [monitor.entry for monitor in monitors] or None,
    numbers=_numbers,
    words=lambda monitors, policy: [f"{monitor.key}: {monitor.text}" for monitor in monitors],
)
