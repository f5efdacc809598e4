"""Torch's private names, one file an area: no other package of qgraph knows them."""

from typing import TYPE_CHECKING

from qgraph.lazy import face

if TYPE_CHECKING:
    from qgraph.compat.fake import FakeTensorMode, as_cpu
    from qgraph.compat.products import int_mm

__getattr__, __all__ = face(__name__, __file__)
