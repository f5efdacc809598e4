"""Capturing models, the two front doors, and what is written to disk. Private torch names live here."""
