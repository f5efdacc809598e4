"""Papers' claims as experiments, and what they showed."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.experiments.experiment import experiment_names, load_experiment
    from qgraph.experiments.outcome import finding_rows, noise_text, page, plot, table
    from qgraph.experiments.reproducing import outcome_json, reproduce

__getattr__, __all__ = face(__name__, __file__)
