"""Looking at a rewritten graph: verifying, checking, observing."""
