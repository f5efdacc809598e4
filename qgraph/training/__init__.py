"""Training with a policy: the Trainer callback, text, and comparing policies."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.training.callback import CoverageCallback
    from qgraph.training.checkpoint import CheckpointCallback, last_checkpoint
    from qgraph.training.compare import (
        Settings,
        Store,
        gap_percent,
        mean_and_spread,
        plot_losses,
        train_each,
    )
    from qgraph.training.processes import rank, told_of_lost_processes, world_size
    from qgraph.training.run import Run
    from qgraph.training.run_folders import CHECKPOINTS, run_folder, text_digest
    from qgraph.training.signals import logit_sharpness, spike_share
    from qgraph.training.states.optimizer import (
        optimizer_for,
        quantize_optimizer,
        state_bytes,
        unpack_state_dict,
    )
    from qgraph.training.text import Windows, read_text, tokenize
    from qgraph.training.trainer import QGraphCallback

__getattr__, __all__ = face(__name__, __file__)
