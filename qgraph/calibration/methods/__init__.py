"""One method a file: what it wants to see of a layer, and what it makes of it."""
