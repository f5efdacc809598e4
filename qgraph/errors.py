"""Errors a user can act on: where, what is wrong, what to write instead."""

from __future__ import annotations

from dataclasses import dataclass


class QGraphError(Exception):
    """Base of every error qgraph raises on purpose; the command line prints it without a traceback."""

    def __init__(self, problem: str, fix: str | None = None) -> None:
        """Join the problem and, on a second line, what to do about it."""
        super().__init__(problem if fix is None else f"{problem}\n  fix: {fix}")
        self.problem, self.fix = problem, fix or ""


class QGraphWarning(UserWarning):
    """Something a user should know that does not stop the run."""


class FormatError(QGraphError, ValueError):
    """A number format that does not exist or cannot be built."""


class ShapeError(QGraphError, ValueError):
    """A tensor whose shape an operation cannot take."""


class ModelError(QGraphError, ValueError):
    """A model that cannot be found, loaded or captured."""


class ArtifactError(QGraphError, OSError):
    """A directory that cannot be written, or that is not a converted model."""


class CheckpointError(QGraphError, OSError):
    """A checkpoint that is torn, corrupted or of another policy."""


class RunError(QGraphError, RuntimeError):
    """A training run that cannot go on."""


class GraphError(QGraphError, RuntimeError):
    """A graph that breaks a rule the passes rely on."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A position in a policy file; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class PolicyError(QGraphError, ValueError):
    """A policy file that says something qgraph cannot do."""

    def __init__(self, place: Place | str, key: str, problem: str, fix: str) -> None:
        """Say where, which key, what is wrong, and what to write instead."""
        super().__init__(f"{place}: {key}: {problem}", fix)
        self.place, self.key, self.problem, self.fix = place, key, problem, fix  # without the place
