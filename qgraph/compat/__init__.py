"""Torch's private names, one file an area: no other package of qgraph knows them."""
