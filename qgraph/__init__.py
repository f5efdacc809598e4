"""A model-compiler pass for low-precision training.

    qgraph.compile(model, policy="nvfp4")             in place, before Trainer(model=model)
    qgraph.convert(model, "nvfp4", example_inputs)    the rewritten graph, a report, a trainable module
    qgraph.load(directory)                            what `qgraph convert` wrote, ready to train

Names are loaded on first use, so that a policy can be checked without importing torch.
"""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.calibration import calibrate
    from qgraph.doors import compile, conversion, convert, coverage, load
    from qgraph.errors import QGraphError, QGraphWarning
    from qgraph.policy import load_policy
    from qgraph.training import (
        CheckpointCallback,
        CoverageCallback,
        QGraphCallback,
        Run,
        last_checkpoint,
        optimizer_for,
        quantize_optimizer,
        state_bytes,
        unpack_state_dict,
    )

__getattr__, __all__ = face(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
