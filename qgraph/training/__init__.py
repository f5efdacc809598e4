"""Training with a policy: the Trainer callback, text, and comparing policies."""
