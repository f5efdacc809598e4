"""After training: what a policy's `calibrate` changes in a model's weights, one method a file."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.calibration.solve import calibrate
    from qgraph.calibration.store import write_tensors

__getattr__, __all__ = face(__name__, __file__)
