"""Models: found, loaded, and with inputs to try them on."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.models.examples import example_inputs
    from qgraph.models.files import read_json
    from qgraph.models.load import folder_of, load_config, load_model, model_class
    from qgraph.models.shapes import Shapes, load_shapes, shapes_of

__getattr__, __all__ = face(__name__, __file__)
