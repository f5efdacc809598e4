"""Papers' claims as experiments, and what they showed."""
