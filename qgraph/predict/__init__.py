"""What a policy will cost on a device that need not be there."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.predict.costing import Assumptions, cost, plan_step
    from qgraph.predict.offline.compile import check_triton, compile_step
    from qgraph.predict.offline.report import comparison, comparison_text, write_sources
    from qgraph.predict.scaling_law import critical_tokens, penalty
    from qgraph.predict.speed import read_speeds
    from qgraph.predict.step import outline_step
    from qgraph.predict.token_advice import lint_tokens

__getattr__, __all__ = face(__name__, __file__)
