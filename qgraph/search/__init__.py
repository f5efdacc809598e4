"""Which products may be quantized to what: measured, chosen, written as a policy."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.search.candidates import HIGH_CANDIDATE, check_measure, parse_candidates
    from qgraph.search.choosing import Budget, choices, choose, choose_at_random, score
    from qgraph.search.compose import compose_policy
    from qgraph.search.curvature import hessian_traces
    from qgraph.search.replay import Replay
    from qgraph.search.sensitivity import Sensitivity, measure, run_policy
    from qgraph.search.values import Values, measure_values

__getattr__, __all__ = face(__name__, __file__)
