"""The policy file: YAML with places, the schema, faults in plain words, and what a file resolves to."""
