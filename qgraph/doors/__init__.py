"""The ways in: compiling in place, capturing whole, converting."""
