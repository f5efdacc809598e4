"""The ways in: compiling in place, capturing whole, converting."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.doors.aot import Capture, capture, capture_shapes
    from qgraph.doors.artifact import load, new_directory, write_artifact, write_plan
    from qgraph.doors.converting import analyze, conversion, convert
    from qgraph.doors.facts import Outline
    from qgraph.doors.jit import (
        PolicyLike,
        as_policy,
        check_target,
        compile,
        compiled_by_us,
        coverage,
        enter_stage,
        replace_call,
    )
    from qgraph.doors.parameters import DTYPES
    from qgraph.doors.partition import cut

__getattr__, __all__ = face(__name__, __file__)
