"""The schema of one entry of `monitors` in a policy file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from qgraph.policy.timed import Action, Watch
from qgraph.policy.timed_values import Limit, Steps


def _optional(description: str, example: Any, default: Any = None) -> Any:
    return Field(default=default, description=description, examples=[example])


class MonitorEntry(BaseModel):
    """A number watched as a run goes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    watch: Watch = Field(
        description="loss_spike (standard deviations above the mean), logit_sharpness, wgrad_error "
        "(relative).",
        examples=["loss_spike"],
    )
    above: Limit | None = _optional("The limit.", 7)
    every: Steps | None = _optional("Steps between two looks.", 50)
    window: Steps = _optional("loss_spike: how many steps the mean is of.", 100, 100)
    action: Action = _optional("warn, or stop the run.", "warn", "warn")
    name: Annotated[str, Field(min_length=1)] | None = _optional(
        "What a schedule calls it; left out, what it watches.", "spikes"
    )
